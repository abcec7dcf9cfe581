package suite

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
)

// Measurement is one load and what is read from its result.
type Measurement struct {
	name string
	load.Config
	beside string       // how a neighbour's load goes meanwhile; "" is none
	other  *load.Config // the neighbour's
	full   bool         // only with Options.Full
	found  []finding
}

// Metrics are the figures of the measurement.
func (m Measurement) Metrics() (all []report.Metric) {
	for _, f := range m.found {
		all = append(all, f.Metric)
	}
	return all
}

// finding is one figure of a measurement. Those whose name begins with
// ofProxies only paths with proxies have.
type finding struct {
	report.Metric
	read func(r load.Result, u Usage) float64
}

const (
	ofProxies = "proxies'" // begins the names of figures that only paths with proxies have
	calls     = ofProxies + " reads and writes each"
	cpuEach   = ofProxies + " CPU each"
	cpuPerGB  = ofProxies + " CPU per GB"
	resident  = ofProxies + " memory, all together"
	rate      = "how many"
	bytesEach = "bytes"
	toServer  = "bulk to the server"
	gigabyte  = 1e9
	bulkWrite = 128 << 10
)

// How a neighbour's load goes.
const (
	SentDirectly   = "sent directly"
	ThroughProxies = "through the same proxies"
)

// All are the measurements, in the order of the report.
func All() []Measurement {
	var list []Measurement
	for _, conns := range []int{1, 16, 64, 256} {
		for _, size := range []int{64, 1024, 16 << 10} {
			m := roundTrips(conns, size)
			m.full = conns > 16 && size != 1024
			list = append(list, m)
		}
	}
	list = append(list,
		fixedRate(atRate),
		bulk(toServer, load.Up, 1), bulk(toServer, load.Up, 4), bulk(toServer, load.Up, 16),
		bulk("bulk from the server", load.Down, 1), bulk("bulk from the server", load.Down, 4), bulk("bulk from the server", load.Down, 16),
		bulk("bulk both ways", load.Both, 1), bulk("bulk both ways", load.Both, 4), bulk("bulk both ways", load.Both, 16),
		newConnections(16), coldConnections(),
		requests(1), requests(16), unary(1), unary(16), exchanges(1),
	)
	for _, program := range Programs {
		list = append(list, program.measurement())
	}
	for _, n := range neighbours {
		for _, how := range []string{SentDirectly, ThroughProxies} {
			list = append(list, n.measurement(how))
		}
	}
	return list
}

const atRate = "1,000 round trips a second"

// neighbour is a pod's load that another pod's latency is measured beside.
type neighbour struct {
	what string
	load.Config
}

var neighbours = []neighbour{
	{"bulk", load.Config{Kind: load.Up, Conns: 4, Size: bulkWrite}},
	{"5,000 new connections a second,", load.Config{Kind: load.Connect, Conns: 16, Rate: 5000}},
}

func (n neighbour) name(how string) string { return atRate + ", beside " + n.what + " " + how }

func (n neighbour) measurement(how string) Measurement {
	m := fixedRate(n.name(how))
	m.beside, m.other = how, &n.Config
	return m
}

func roundTrips(conns, size int) Measurement {
	m := Measurement{name: fmt.Sprintf("round trips of %s, %s", sizeOf(size), connections(conns)),
		Config: load.Config{Kind: load.Echo, Conns: conns, Size: size}}
	m.latencies()
	m.rate()
	m.processorTime()
	m.calls()
	return m
}

func fixedRate(name string) Measurement {
	m := Measurement{name: name, Config: load.Config{Kind: load.Rate, Conns: 16, Size: 1024, Rate: 1000}}
	m.latencies()
	m.processorTime()
	return m
}

func bulk(name, kind string, conns int) Measurement {
	m := Measurement{name: name + ", " + connections(conns), Config: load.Config{Kind: kind, Conns: conns, Size: bulkWrite}}
	m.find(bytesEach, "MB/s", true, func(r load.Result, _ Usage) float64 { return float64(r.Bytes) / 1e6 / r.Elapsed.Seconds() })
	m.find(cpuPerGB, "s", false, func(r load.Result, u Usage) float64 {
		return u.CPU.Seconds() / (float64(max(1, r.Bytes)) / gigabyte)
	})
	return m
}

func newConnections(conns int) Measurement {
	m := Measurement{name: "new connections, " + strconv.Itoa(conns) + " at a time", Config: load.Config{Kind: load.Connect, Conns: conns}}
	m.latencies()
	m.rate()
	m.processorTime()
	return m
}

// coldConnections find no connection between the proxies that they could share.
func coldConnections() Measurement {
	m := Measurement{name: "cold connections, one after the other", Config: load.Config{Kind: load.Cold, Conns: 1}}
	m.latencies()
	m.rate()
	m.processorTime()
	return m
}

func requests(conns int) Measurement {
	return asked("HTTP/1.1 requests, ", load.Config{Kind: load.HTTP, Conns: conns})
}

func unary(conns int) Measurement {
	return asked("unary calls of gRPC, ", load.Config{Kind: load.GRPC, Conns: conns, Size: 1024})
}

// exchanges are what the calls of proxies are counted by: gRPC's own writes depend on
// the machine.
func exchanges(conns int) Measurement {
	m := asked("exchanges of HTTP/2, ", load.Config{Kind: load.Frames, Conns: conns, Size: 1024})
	m.full = true
	return m
}

// asked is a measurement of requests one after the other on each connection.
func asked(what string, c load.Config) Measurement {
	m := Measurement{name: what + connections(c.Conns), Config: c}
	m.latencies()
	m.rate()
	m.processorTime()
	m.calls()
	m.find(resident, "MB", false, func(_ load.Result, u Usage) float64 { return float64(u.Memory) / 1e6 })
	return m
}

// latencies are those of single requests.
func (m *Measurement) latencies() {
	for _, l := range []struct {
		name string
		of   func(load.Result) time.Duration
	}{
		{"p50", func(r load.Result) time.Duration { return r.P50 }},
		{"p90", func(r load.Result) time.Duration { return r.P90 }},
		{"p99", func(r load.Result) time.Duration { return r.P99 }},
		{"p99.9", func(r load.Result) time.Duration { return r.P999 }},
		{"longest", func(r load.Result) time.Duration { return r.Max }},
	} {
		m.find(l.name, "µs", false, func(r load.Result, _ Usage) float64 { return micros(l.of(r)) })
	}
}

func (m *Measurement) rate() {
	m.find(rate, "/s", true, func(r load.Result, _ Usage) float64 { return float64(r.Requests) / r.Elapsed.Seconds() })
}

// processorTime is that of the proxies for each request.
func (m *Measurement) processorTime() {
	m.find(cpuEach, "µs", false, func(r load.Result, u Usage) float64 { return micros(u.CPU) / float64(max(1, r.Requests)) })
}

// calls are what the proxies ask of the kernel for each request.
func (m *Measurement) calls() {
	m.find(calls, "", false, func(r load.Result, u Usage) float64 { return float64(u.Calls) / float64(max(1, r.Requests)) })
}

func (m *Measurement) find(name, unit string, higherBetter bool, read func(load.Result, Usage) float64) {
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
