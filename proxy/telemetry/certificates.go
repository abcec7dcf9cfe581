package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Certificate is the state of an identity that is held.
type Certificate struct {
	Identity model.Identity
	NotAfter time.Time // of the certificate that ends first; zero if there is none yet
	Renewal  time.Time // when a newer one than that was due
	Failures uint64    // to get or renew it
	// Roots is when the last of the roots ends by which its peers are judged.
	Roots time.Time
}

// certificateCollector has series for the identities held now, no others.
type certificateCollector struct {
	options                                   Options
	left, istio, end, renewal, roots, failure *prometheus.Desc
}

func newCertificateCollector(o Options) certificateCollector {
	labels := []string{"identity"}
	return certificateCollector{
		options: o,
		left: prometheus.NewDesc("tacit_certificate_expiry_seconds",
			"Seconds until the workloads' current certificate ends; negative after.", labels, nil),
		istio: prometheus.NewDesc("istio_cert_expiry_seconds",
			"The same, by the name that Istio's dashboards know.", labels, nil),
		end: prometheus.NewDesc("tacit_certificate_expiry_timestamp_seconds",
			"When the workloads' current certificate ends, as seconds since 1970.", labels, nil),
		renewal: prometheus.NewDesc("tacit_certificate_renewal_timestamp_seconds",
			"When a newer certificate than the workloads' current one is due, as seconds since 1970.", labels, nil),
		roots: prometheus.NewDesc("tacit_roots_expiry_timestamp_seconds",
			"When the last of the roots ends by which peers of the workloads are judged, as seconds since 1970.", labels, nil),
		failure: prometheus.NewDesc("tacit_certificate_failures_total",
			"Failures to get or renew a certificate.", labels, nil),
	}
}

// Describe implements prometheus.Collector.
func (c certificateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.left, c.istio, c.end, c.renewal, c.roots, c.failure} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c certificateCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.options.Now()
	for _, s := range c.options.Certificates() {
		id := s.Identity.String()
		ch <- prometheus.MustNewConstMetric(c.failure, prometheus.CounterValue, float64(s.Failures), id)
		if s.NotAfter.IsZero() {
			continue // none has been issued yet
		}
		left := s.NotAfter.Sub(now).Truncate(time.Second).Seconds()
		ch <- prometheus.MustNewConstMetric(c.left, prometheus.GaugeValue, left, id)
		ch <- prometheus.MustNewConstMetric(c.istio, prometheus.GaugeValue, left, id)
		ch <- prometheus.MustNewConstMetric(c.end, prometheus.GaugeValue, float64(s.NotAfter.Unix()), id)
		ch <- prometheus.MustNewConstMetric(c.renewal, prometheus.GaugeValue, float64(s.Renewal.Unix()), id)
		ch <- prometheus.MustNewConstMetric(c.roots, prometheus.GaugeValue, float64(s.Roots.Unix()), id)
	}
}
