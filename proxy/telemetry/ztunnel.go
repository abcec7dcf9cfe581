package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Ztunnel is what Istio's dashboard of ztunnel shows besides connections and DNS
// queries.
type Ztunnel struct {
	Version string
	Pods    int // that are served
	// Ended counts connections to the control plane by why they ended, in
	// ztunnel's words.
	Ended map[string]uint64
	// Received is what has come from there, by the URL of its type.
	Received map[string]Received
}

// Received counts responses of the control plane, and the bytes of what is in
// them.
type Received struct{ Responses, Bytes uint64 }

// ztunnelCollector has the series by ztunnel's names.
type ztunnelCollector struct {
	now                                         func() Ztunnel
	build, pods, ended, received, receivedBytes *prometheus.Desc
}

func newZtunnelCollector(now func() Ztunnel) *ztunnelCollector {
	return &ztunnelCollector{
		now:           now,
		build:         prometheus.NewDesc("istio_build", "The version of this program, which is in the place of ztunnel.", []string{"component", "tag"}, nil),
		pods:          prometheus.NewDesc("workload_manager_active_proxy_count", "Pods of this node that are served.", nil, nil),
		ended:         prometheus.NewDesc("istio_xds_connection_terminations_total", "Connections to the control plane that have ended, by reason.", []string{"reason"}, nil),
		received:      prometheus.NewDesc("istio_xds_message_total", "Responses of the control plane, by type.", []string{"url"}, nil),
		receivedBytes: prometheus.NewDesc("istio_xds_message_bytes_total", "Bytes of the resources in responses of the control plane, by type.", []string{"url"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *ztunnelCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.pods, c.ended, c.received, c.receivedBytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *ztunnelCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.now()
	ch <- prometheus.MustNewConstMetric(c.build, prometheus.GaugeValue, 1, "ztunnel", now.Version)
	ch <- prometheus.MustNewConstMetric(c.pods, prometheus.GaugeValue, float64(now.Pods))
	counter := func(d *prometheus.Desc, value uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), label)
	}
	for reason, n := range now.Ended {
		counter(c.ended, n, reason)
	}
	for url, n := range now.Received {
		counter(c.received, n.Responses, url)
		counter(c.receivedBytes, n.Bytes, url)
	}
}
