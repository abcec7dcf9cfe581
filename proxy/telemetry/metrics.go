package telemetry

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// phaseBuckets begin at 50 µs, about what a pooled connection costs, and end
// beyond the proxy's longest waits.
var phaseBuckets = prometheus.ExponentialBuckets(50e-6, 2, 18)

// metrics are the proxy's own.
type metrics struct {
	phases      [directions][Phases]prometheus.Observer
	connections [directions][securities]prometheus.Counter
	live        [directions]atomic.Int64
	denials     *boundedCounter
	handshakes  *boundedCounter
	cuts        *boundedCounter
	dryRuns     prometheus.Counter
	suppressed  prometheus.Counter
	policies    *boundedCounter
	limitsAlone prometheus.Counter
	dns         *dnsMetrics
}

func newMetrics(registry prometheus.Registerer, o Options) *metrics {
	m := &metrics{
		denials: newBoundedCounter(registry, "tacit_denials_total",
			"Connections denied, by reason.", "direction", "reason"),
		handshakes: newBoundedCounter(registry, "tacit_tls_handshake_failures_total",
			"TLS handshakes that failed, by reason.", "direction", "reason"),
		cuts: newBoundedCounter(registry, "tacit_peer_cuts_total",
			"Connections of peers cut for what they sent, by cause.", "cause"),
		dryRuns: prometheus.NewCounter(prometheus.CounterOpts{Name: "tacit_dry_run_total",
			Help: "Decisions that a dry-run policy would have changed."}),
		suppressed: prometheus.NewCounter(prometheus.CounterOpts{Name: "tacit_log_lines_suppressed_total",
			Help: "Log lines that were summed up because they repeated."}),
	}
	m.denials.begin([]string{Inbound.String()}, "denied", "not_allowed")
	m.handshakes.begin([]string{Inbound.String(), Outbound.String()}, "unknown_authority", "expired")
	m.policies = newPolicyCounter(registry)
	m.limitsAlone = prometheus.NewCounter(prometheus.CounterOpts{Name: "tacit_rate_limits_local_total",
		Help: "Decisions about shared rate limits that this node made alone, their store being away."})
	registry.MustRegister(m.dryRuns, m.suppressed, m.limitsAlone,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.dns = newDNSMetrics(registry)
	m.registerConnections(registry)
	m.registerState(registry, o)
	return m
}

func (m *metrics) registerConnections(registry prometheus.Registerer) {
	phases := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tacit_connection_phase_seconds",
		Help: "Latency that the proxy adds to a connection, by phase.", Buckets: phaseBuckets}, []string{"direction", "phase"})
	connections := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tacit_connections_total",
		Help: "Connections, by how their bytes travel."}, []string{"direction", "security"})
	registry.MustRegister(phases, connections)
	for d := range directions {
		for p := range Phases {
			m.phases[d][p] = phases.WithLabelValues(d.String(), p.String())
		}
		for s := range securities {
			m.connections[d][s] = connections.WithLabelValues(d.String(), s.String())
		}
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tacit_connections_live",
			Help: "Connections open now.", ConstLabels: prometheus.Labels{"direction": d.String()}},
			func() float64 { return float64(m.live[d].Load()) }))
	}
}

func (m *metrics) registerState(registry prometheus.Registerer, o Options) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tacit_time_seconds",
		Help: "The clock by which certificates are judged, as seconds since 1970."},
		func() float64 { return float64(o.Now().UnixMilli()) / 1000 }))
	if o.Generation != nil {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tacit_snapshot_generation",
			Help: "Updates of the mesh's state applied since the start."},
			func() float64 { return float64(o.Generation()) }))
	}
	if o.PoolConnections != nil {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tacit_pool_connections",
			Help: "mTLS connections to peers, kept for further streams."},
			func() float64 { return float64(o.PoolConnections()) }))
	}
	if o.Spans != nil {
		registerExported(registry, "spans", o.Spans.Spans)
		registerExported(registry, "logs", o.Spans.Logs)
	}
	if o.Certificates != nil {
		registry.MustRegister(newCertificateCollector(o))
	}
	if o.Ztunnel != nil {
		registry.MustRegister(newZtunnelCollector(o.Ztunnel))
	}
}

// maxLabelValues bounds a label that callers fill in.
const maxLabelValues = 64

// boundedCounter counts by labels of which the last, a reason, may take a
// bounded number of values; the rest is "other".
type boundedCounter struct {
	vec   *prometheus.CounterVec
	limit int
	valid func(string) bool

	mu    sync.Mutex
	known map[string]struct{}
}

func newBoundedCounter(registry prometheus.Registerer, name, help string, labels ...string) *boundedCounter {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	registry.MustRegister(vec)
	return &boundedCounter{vec: vec, limit: maxLabelValues, valid: isWord, known: map[string]struct{}{}}
}

func (c *boundedCounter) inc(values ...string) {
	last := len(values) - 1
	values[last] = c.bound(values[last])
	c.vec.WithLabelValues(values...).Inc()
}

// begin makes the series of the usual reasons at zero, since a rate takes no
// notice of the first increase of a series that was not there before.
func (c *boundedCounter) begin(firsts []string, reasons ...string) {
	for _, first := range firsts {
		for _, reason := range reasons {
			c.vec.WithLabelValues(first, c.bound(reason))
		}
	}
}

func (c *boundedCounter) bound(reason string) string {
	if reason == "" || !c.valid(reason) {
		return "other"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[reason]; !ok {
		if len(c.known) >= c.limit {
			return "other"
		}
		c.known[reason] = struct{}{}
	}
	return reason
}

func isWord(s string) bool {
	if len(s) > 64 {
		return false
	}
	for _, b := range []byte(s) {
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '-' || b == '.') {
			return false
		}
	}
	return true
}
