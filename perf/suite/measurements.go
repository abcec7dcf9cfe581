package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
)

// measurement is one load and what is read from its result.
type measurement struct {
	name string
	load.Config
	beside string       // how a neighbour's load goes meanwhile; "" is none
	other  *load.Config // the neighbour's
	found  []finding
}

// finding is one figure of a measurement. Those whose name begins with
// ofProxies only paths with proxies have, and only Tacit's that of calls.
type finding struct {
	report.Metric
	read func(r load.Result, u usage) float64
}

// usage is what proxies have used together.
type usage struct {
	cpu   time.Duration
	calls int64 // read(2), write(2) and their like; others use recv and send, which the kernel does not count
}

const (
	ofProxies = "proxies'" // begins the names of figures that only paths with proxies have
	calls     = ofProxies + " reads and writes each"
	gigabyte  = 1e9
	bulkWrite = 128 << 10
)

var measurements = all()

// all are the measurements, in the order of the report.
func all() []measurement {
	list := []measurement{
		roundTrips(1, 64), roundTrips(1, 1024), roundTrips(1, 16<<10),
		roundTrips(16, 64), roundTrips(16, 1024), roundTrips(16, 16<<10),
		roundTrips(64, 1024), roundTrips(256, 1024),
		fixedRate("1,000 round trips a second"),
		bulk("bulk to the server", load.Up, 1), bulk("bulk to the server", load.Up, 4), bulk("bulk to the server", load.Up, 16),
		bulk("bulk from the server", load.Down, 1), bulk("bulk from the server", load.Down, 16),
		bulk("bulk both ways", load.Both, 4),
		newConnections(16),
		requests(16),
	}
	for what, other := range map[string]load.Config{
		"bulk":                  {Kind: load.Up, Conns: 4, Size: bulkWrite},
		"many new connections,": {Kind: load.Connect, Conns: 16},
	} {
		for _, how := range []string{sentDirectly, throughProxies} {
			m := fixedRate("1,000 round trips a second, beside " + what + " " + how)
			m.beside, m.other = how, &other
			m.found = m.found[:2]
			list = append(list, m)
		}
	}
	return list
}

func roundTrips(conns, size int) measurement {
	m := measurement{name: fmt.Sprintf("round trips of %s, %s", sizeOf(size), connections(conns)),
		Config: load.Config{Kind: load.Echo, Conns: conns, Size: size}}
	m.latency("p50", func(r load.Result) time.Duration { return r.P50 })
	m.latency("p99", func(r load.Result) time.Duration { return r.P99 })
	if conns > 1 {
		m.rate()
		m.processorTime()
	}
	m.find(calls, "", false, func(r load.Result, u usage) float64 { return float64(u.calls) / float64(max(1, r.Requests)) })
	return m
}

func fixedRate(name string) measurement {
	m := measurement{name: name, Config: load.Config{Kind: load.Rate, Conns: 16, Size: 1024, Rate: 1000}}
	m.latency("p50", func(r load.Result) time.Duration { return r.P50 })
	m.latency("p99", func(r load.Result) time.Duration { return r.P99 })
	m.processorTime()
	return m
}

func bulk(name, kind string, conns int) measurement {
	m := measurement{name: name + ", " + connections(conns), Config: load.Config{Kind: kind, Conns: conns, Size: bulkWrite}}
	m.find("bytes", "MB/s", true, func(r load.Result, _ usage) float64 { return float64(r.Bytes) / 1e6 / r.Elapsed.Seconds() })
	m.find(ofProxies+" CPU per GB", "s", false, func(r load.Result, u usage) float64 {
		return u.cpu.Seconds() / (float64(max(1, r.Bytes)) / gigabyte)
	})
	return m
}

func newConnections(conns int) measurement {
	m := measurement{name: "new connections, " + strconv.Itoa(conns) + " at a time", Config: load.Config{Kind: load.Connect, Conns: conns}}
	m.rate()
	m.processorTime()
	return m
}

func requests(conns int) measurement {
	m := measurement{name: "HTTP/1.1 requests, " + connections(conns), Config: load.Config{Kind: load.HTTP, Conns: conns}}
	m.latency("p50", func(r load.Result) time.Duration { return r.P50 })
	m.latency("p99", func(r load.Result) time.Duration { return r.P99 })
	m.rate()
	m.processorTime()
	return m
}

func (m *measurement) latency(name string, of func(load.Result) time.Duration) {
	m.find(name, "µs", false, func(r load.Result, _ usage) float64 { return micros(of(r)) })
}

func (m *measurement) rate() {
	m.find("how many", "/s", true, func(r load.Result, _ usage) float64 { return float64(r.Requests) / r.Elapsed.Seconds() })
}

// processorTime is that of the proxies for each request.
func (m *measurement) processorTime() {
	m.find(ofProxies+" CPU each", "µs", false, func(r load.Result, u usage) float64 { return micros(u.cpu) / float64(max(1, r.Requests)) })
}

func (m *measurement) find(name, unit string, higherBetter bool, read func(load.Result, usage) float64) {
	metric := report.Metric{Load: m.name, Name: name, Unit: unit, HigherBetter: higherBetter}
	m.found = append(m.found, finding{metric, read})
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func sizeOf(n int) string {
	if n >= 1024 {
		return fmt.Sprintf("%d KB", n/1024)
	}
	return fmt.Sprintf("%d B", n)
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

var (
	baseMemory = report.Metric{Load: "memory", Name: "a proxy on an idle node", Unit: "MB"}
	idleMemory = report.Metric{Load: "memory", Name: "an idle connection, in all proxies", Unit: "KB"}
)

// measureAll fills the report. Idle memory comes first: later, a proxy would
// use again what the load before made it take.
func measureAll(ctx context.Context, c config, paths []*path, r *report.Report) error {
	if c.measurements.MatchString("memory") {
		if err := measureMemory(ctx, c, paths, r); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	for round := range c.rounds {
		for _, m := range measurements {
			if !c.measurements.MatchString(m.name) {
				continue
			}
			for i := range paths {
				p := paths[(i+round)%len(paths)] // nobody is always the first
				progress("round %d of %d: %s: %s", round+1, c.rounds, m.name, p.Name)
				if err := p.measure(ctx, c, m, r); err != nil {
					return fmt.Errorf("%s: %s: %w", p.Name, m.name, err)
				}
			}
		}
	}
	progress("")
	return nil
}

// measure runs one load on the path and notes what it found.
func (p *path) measure(ctx context.Context, c config, m measurement, r *report.Report) error {
	if p.address(m.Kind) == "" || m.beside != "" && p.beside[m.beside] == nil {
		return nil
	}
	before, err := usageOf(p.proxies)
	if err != nil {
		return err
	}
	var got load.Result
	all, ctx := errgroup.WithContext(ctx)
	if m.beside != "" {
		all.Go(func() error {
			other := *m.other
			other.Time = c.time
			_, err := p.beside[m.beside].load(ctx, other)
			return err
		})
	}
	all.Go(func() (err error) {
		own := m.Config
		own.Time = c.time
		got, err = p.load(ctx, own)
		return err
	})
	if err := all.Wait(); err != nil {
		return err
	}
	after, err := usageOf(p.proxies)
	if err != nil {
		return err
	}
	used := usage{after.cpu - before.cpu, after.calls - before.calls}
	for _, f := range m.found {
		if p.has(f.Name) {
			r.Note(f.Metric, p.Name, f.read(got, used))
		}
	}
	return nil
}

// has says whether the path has a figure of that name.
func (p *path) has(name string) bool {
	if name == calls {
		return p.Class == report.Tacit
	}
	return len(p.proxies) > 0 || !strings.HasPrefix(name, ofProxies)
}

// calm is how long a proxy has to give memory back that it needs no more.
const calm = 25 * time.Second

// measureMemory compares the proxies' memory without and with idle
// connections, of all paths at the same time.
func measureMemory(ctx context.Context, c config, paths []*path, r *report.Report) (err error) {
	before, with, release := map[*path]int64{}, map[*path]int64{}, []func() error{}
	defer func() {
		for _, end := range release {
			err = errors.Join(err, end())
		}
	}()
	if err := rest(ctx, "memory of idle proxies"); err != nil {
		return err
	}
	paths = slices.DeleteFunc(slices.Clone(paths), func(p *path) bool { return !p.idle })
	for _, p := range paths {
		if before[p], err = residentMemory(p.proxies); err != nil {
			return err
		}
		r.Note(baseMemory, p.Name, float64(before[p])/float64(len(p.proxies))/1e6)
		end, err := p.hold(ctx, c.idle)
		if err != nil {
			return err
		}
		release = append(release, end)
	}
	if err := rest(ctx, fmt.Sprintf("memory of %d idle connections", c.idle)); err != nil {
		return err
	}
	for _, p := range paths {
		if with[p], err = residentMemory(p.proxies); err != nil {
			return err
		}
		r.Note(idleMemory, p.Name, float64(with[p]-before[p])/float64(c.idle)/1e3)
	}
	return nil
}

// rest lets the proxies have nothing to do.
func rest(ctx context.Context, why string) error {
	progress("%s, which takes %v to settle", why, calm)
	select {
	case <-time.After(calm):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// usageOf is what processes have used so far: proc_pid_stat(5), utime and
// stime, in ticks of 10 ms; and proc_pid_io(5), syscr and syscw.
func usageOf(pids []int) (total usage, err error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go knows
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return total, fmt.Errorf("a proxy has ended: %w", err)
		}
		// The name, in parentheses, may hold anything; field 3 is behind it.
		_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
		fields := strings.Fields(rest)
		for _, i := range []int{14, 15} {
			n, err := strconv.ParseInt(fields[i-3], 10, 64)
			if err != nil {
				return total, err
			}
			total.cpu += time.Duration(n) * tick
		}
		if data, err = os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)); err != nil {
			return total, err
		}
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && (name == "syscr" || name == "syscw") {
				total.calls += n
			}
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
