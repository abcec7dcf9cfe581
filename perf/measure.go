package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// measurement is one kind of load and what is read from its result.
type measurement struct {
	name  string
	kind  string
	conns int
	bulk  bool
	found []finding
}

// finding is one number of a measurement. From cpu, the proxies' processor
// time, only paths with proxies have one.
type finding struct {
	metric metric
	read   func(r result, cpu time.Duration) float64
}

// metric is a row of the report.
type metric struct {
	Name         string `json:"name"`
	Unit         string `json:"unit"`
	HigherBetter bool   `json:"higherIsBetter"`
	ofProxies    bool
}

const gigabyte = 1e9

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

var measurements = []measurement{
	{name: "round trips, 1 connection", kind: "echo", conns: 1, found: []finding{
		{metric{Name: "round trip p50, 1 connection", Unit: "µs"}, func(r result, _ time.Duration) float64 { return micros(r.P50) }},
		{metric{Name: "round trip p99, 1 connection", Unit: "µs"}, func(r result, _ time.Duration) float64 { return micros(r.P99) }},
	}},
	{name: "round trips, 16 connections", kind: "echo", conns: 16, found: []finding{
		{metric{Name: "round trip p50, 16 connections", Unit: "µs"}, func(r result, _ time.Duration) float64 { return micros(r.P50) }},
		{metric{Name: "round trip p99, 16 connections", Unit: "µs"}, func(r result, _ time.Duration) float64 { return micros(r.P99) }},
		{metric{Name: "proxies' CPU per request", Unit: "µs", ofProxies: true},
			func(r result, cpu time.Duration) float64 { return micros(cpu) / float64(max(1, r.Requests)) }},
	}},
	{name: "bulk, 1 connection", kind: "bulk", conns: 1, bulk: true, found: []finding{
		{metric{Name: "bulk, 1 connection", Unit: "MB/s", HigherBetter: true}, megabytes},
	}},
	{name: "bulk, 16 connections", kind: "bulk", conns: 16, bulk: true, found: []finding{
		{metric{Name: "bulk, 16 connections", Unit: "MB/s", HigherBetter: true}, megabytes},
		{metric{Name: "proxies' CPU per GB", Unit: "s", ofProxies: true},
			func(r result, cpu time.Duration) float64 {
				return cpu.Seconds() / (float64(max(1, r.Bytes)) / gigabyte)
			}},
	}},
	{name: "new connections", kind: "connect", conns: 16, found: []finding{
		{metric{Name: "new connections", Unit: "/s", HigherBetter: true},
			func(r result, _ time.Duration) float64 { return float64(r.Requests) / r.Elapsed.Seconds() }},
	}},
}

func megabytes(r result, _ time.Duration) float64 {
	return float64(r.Bytes) / 1e6 / r.Elapsed.Seconds()
}

var (
	idleMemory = metric{Name: "memory per idle connection, both proxies", Unit: "kB", ofProxies: true}
	baseMemory = metric{Name: "memory of a proxy on an idle node", Unit: "MB", ofProxies: true}
)

// measure runs one load on the path and notes what it found.
func (p *path) measure(ctx context.Context, c config, m measurement, r *report) error {
	to, size := p.echo, "1024"
	if m.bulk {
		to, size = p.sink, "131072"
	}
	if to == "" {
		return nil
	}
	before, err := processorTime(p.proxies)
	if err != nil {
		return err
	}
	got, err := p.load(ctx, "-kind", m.kind, "-to", to, "-conns", strconv.Itoa(m.conns), "-size", size, "-time", c.time.String())
	if err != nil {
		return err
	}
	after, err := processorTime(p.proxies)
	if err != nil {
		return err
	}
	for _, f := range m.found {
		if !f.metric.ofProxies || len(p.proxies) > 0 {
			r.note(f.metric, p.name, f.read(got, after-before))
		}
	}
	return nil
}

// load runs the load's client in the path's pod.
func (p *path) load(ctx context.Context, args ...string) (result, error) {
	var r result
	out, err := p.client.Command(ctx, "/proc/self/exe", append([]string{"load"}, args...)...).Output()
	if err != nil {
		return r, fmt.Errorf("load %v: %w%s", args, err, stderrOf(err))
	}
	return r, json.Unmarshal(out, &r)
}

// measureMemory compares the proxies' memory without and with idle
// connections.
func (p *path) measureMemory(ctx context.Context, c config, r *report) error {
	before, err := residentMemory(p.proxies)
	if err != nil {
		return err
	}
	r.note(baseMemory, p.name, float64(before)/float64(len(p.proxies))/1e6)
	release, err := p.hold(ctx, c.idle)
	if err != nil {
		return err
	}
	with, err := residentMemory(p.proxies)
	if err != nil {
		return err
	}
	r.note(idleMemory, p.name, float64(with-before)/float64(c.idle)/1e3)
	return release()
}

// processorTime is what processes have used so far, proc_pid_stat(5): utime
// and stime, in ticks of 10 ms.
func processorTime(pids []int) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go knows
	var total time.Duration
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("a proxy has ended: %w", err)
		}
		// The name, in parentheses, may hold anything; field 3 is behind it.
		_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
		fields := strings.Fields(rest)
		for _, i := range []int{14, 15} {
			n, err := strconv.ParseInt(fields[i-3], 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(n) * tick
		}
	}
	return total, nil
}

// residentMemory is in bytes, by proc_pid_statm(5).
func residentMemory(pids []int) (int64, error) {
	var total int64
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return 0, fmt.Errorf("a proxy has ended: %w", err)
		}
		var size, resident int64
		if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
			return 0, err
		}
		total += resident * int64(os.Getpagesize())
	}
	return total, nil
}
