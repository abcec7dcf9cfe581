package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/zds"
)

// handler answers Prometheus, and who asks whether the node is ready for pods
// and whether this process gets on at all.
func handler(pods prometheus.Collector, sockets *handoff.Server, ready func() bool) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		pods, &socketMetrics{sockets},
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "pods of the node have not all been looked at, or the CNI plugin is not installed yet: the log says what is missing", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {
		_ = sockets.Stats() // nobody holds its lock for ever
	})
	return mux
}

// What collects reads the parts' own counters whenever it is asked.
type (
	podMetrics    struct{ *pods.Set }
	zdsMetrics    struct{ *zds.Client }
	socketMetrics struct{ *handoff.Server }
)

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tacit_agent_"+name, help, labels, nil)
}

// output is where series go.
type output chan<- prometheus.Metric

func (out output) gauge(d *prometheus.Desc, value int, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
}

func (out output) counter(d *prometheus.Desc, value uint64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

const (
	podsHelp    = "Pods of this node by state: pending, captured, releasing (live connections only), left (alone)."
	failingHelp = "Pods whose last attempt to bring them to what is wanted failed; the log says why."
)

// Describe sends nothing: which series there are depends on the pods.
func (podMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect is called for each scrape.
func (t podMetrics) Collect(metrics chan<- prometheus.Metric) {
	out := output(metrics)
	var failing, gaps, refused int
	states := map[pods.State]int{pods.StatePending: 0, pods.StateCaptured: 0, pods.StateReleasing: 0, pods.StateLeft: 0}
	uncaptured := metric("uncaptured_flows_total", "Flows of a captured pod that are not TCP and so pass in clear.", "namespace", "pod")
	for _, p := range t.Status() {
		states[p.State]++
		if p.Err != nil {
			failing++
		}
		if p.Gap != "" {
			gaps++
		}
		if p.Pod.Refused != "" {
			refused++
		}
		if p.State == pods.StateCaptured || p.Uncaptured > 0 {
			out.counter(uncaptured, p.Uncaptured, p.Pod.Namespace, p.Pod.Name)
		}
	}
	number := metric("pods", podsHelp, "state")
	for state, n := range states {
		out.gauge(number, n, string(state))
	}
	out.gauge(metric("pods_failing", failingHelp), failing)
	out.gauge(metric("pods_with_gaps", "Captured pods with addresses that cannot be captured faithfully; the log says which."), gaps)
	out.gauge(metric("pods_refused", "Pods that are labelled to be captured and cannot be; their events say why."), refused)
	out.counter(metric("repairs_total", "Times that others had changed a pod's rules, routes or settings and these were put in order."), t.Repairs())
}

// Describe sends nothing, like its siblings.
func (zdsMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect is called for each scrape.
func (t zdsMetrics) Collect(metrics chan<- prometheus.Metric) {
	out, stats := output(metrics), t.Stats()
	number := metric("pods", podsHelp, "state")
	out.gauge(number, stats.Served, string(pods.StateCaptured))
	out.gauge(number, stats.Failing, string(pods.StatePending))
	out.gauge(metric("pods_failing", failingHelp), stats.Failing)
	// By ztunnel's name, for Istio's dashboard of it.
	out.gauge(prometheus.NewDesc("workload_manager_pending_proxy_count", failingHelp, nil, nil), stats.Failing)
}

// Describe sends nothing, like its siblings.
func (socketMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect is called for each scrape.
func (t socketMetrics) Collect(metrics chan<- prometheus.Metric) {
	out, sockets := output(metrics), t.Stats()
	out.gauge(metric("proxies_connected", "Proxies connected: one, or two while one replaces the other."), sockets.Proxies)
	out.counter(metric("sockets_handed_out_total", "Sockets made in pods' network namespaces for the proxy to dial with."), sockets.Sockets)
	out.counter(metric("socket_failures_total", "Requests for such sockets that were not met, or not whole."), sockets.Failures)
}
