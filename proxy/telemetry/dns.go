package telemetry

import (
	"cmp"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tacit-mesh/tacit/proxy/dns"
	"github.com/tacit-mesh/tacit/xds/model"
)

// dnsMetrics are about DNS queries, by ztunnel's names.
type dnsMetrics struct {
	requests, forwards, failures *prometheus.CounterVec
	duration                     *prometheus.HistogramVec

	mu   sync.Mutex
	seen map[dnsSource]time.Time // since when it has left the mesh; zero if it has not
}

// dnsSource is by what pods that ask are told apart.
type dnsSource struct{ service, revision string }

var dnsLabels = []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}

func newDNSMetrics(registry prometheus.Registerer) *dnsMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, dnsLabels)
	}
	m := &dnsMetrics{
		requests: counter("istio_dns_requests_total", "DNS queries of pods."),
		forwards: counter("istio_dns_upstream_requests_total", "DNS queries of pods that were forwarded."),
		failures: counter("istio_dns_upstream_failures_total", "DNS queries of pods that were forwarded and have not been answered."),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "istio_dns_upstream_request_duration_seconds", Help: "Time until a forwarded DNS query was answered, or given up.",
			Buckets: []float64{0.001, 0.005, 0.01, 0.1, 1, 5},
		}, dnsLabels),
		seen: map[dnsSource]time.Time{},
	}
	registry.MustRegister(m.requests, m.forwards, m.failures, m.duration)
	return m
}

// maxDNSSources bounds the pods that are told apart; the rest is "other".
const maxDNSSources = 1000

func dnsSourceOf(w *model.Workload) dnsSource {
	if w == nil {
		return dnsSource{"unknown", "unknown"}
	}
	return dnsSource{cmp.Or(w.CanonicalName, "unknown"), cmp.Or(w.CanonicalRevision, "unknown")}
}

// bound is the source, or "other" if there are too many.
func (m *dnsMetrics) bound(s dnsSource) dnsSource {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.seen[s]; !ok {
		if len(m.seen) >= maxDNSSources {
			return dnsSource{"other", "other"}
		}
		m.seen[s] = time.Time{}
	}
	return s
}

// sweep drops the series of who has left the mesh.
func (m *dnsMetrics) sweep(now time.Time, mesh []*model.Workload) {
	there := map[dnsSource]bool{dnsSourceOf(nil): true}
	for _, w := range mesh {
		there[dnsSourceOf(w)] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for s, gone := range maps.Clone(m.seen) {
		switch {
		case there[s]:
			m.seen[s] = time.Time{}
		case gone.IsZero():
			m.seen[s] = now
		case now.Sub(gone) >= goneLife:
			delete(m.seen, s)
			match := prometheus.Labels{"source_canonical_service": s.service, "source_canonical_revision": s.revision}
			for _, vec := range []interface{ DeletePartialMatch(prometheus.Labels) int }{m.requests, m.forwards, m.failures, m.duration} {
				vec.DeletePartialMatch(match)
			}
		}
	}
}

// DNS counts a query of a local pod, and logs one that was not answered. A nil
// workload is one that is not known.
func (r *Recorder) DNS(w *model.Workload, e dns.Event) {
	m, s := r.metrics.dns, r.metrics.dns.bound(dnsSourceOf(w))
	labels := []string{e.Kind, "udp", s.service, s.revision}
	if e.TCP {
		labels[1] = "tcp"
	}
	m.requests.WithLabelValues(labels...).Inc()
	if !e.Forwarded {
		return
	}
	m.forwards.WithLabelValues(labels...).Inc()
	m.duration.WithLabelValues(labels...).Observe(e.Took.Seconds())
	if e.Err == nil {
		return
	}
	m.failures.WithLabelValues(labels...).Inc()
	r.trouble("DNS query not answered", trouble{Outbound, asking(w), netip.AddrPort{}, "dns_upstream", e.Err})
}

// DNSUnread logs that the queries of a local pod could not be read for a moment.
func (r *Recorder) DNSUnread(w *model.Workload, err error) {
	r.trouble("DNS queries not read", trouble{Outbound, asking(w), netip.AddrPort{}, "dns_socket", err})
}

func asking(w *model.Workload) netip.AddrPort {
	if w == nil || len(w.Addresses) == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(w.Addresses[0], 0)
}
