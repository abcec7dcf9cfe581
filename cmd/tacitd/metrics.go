package main

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/xds/server"
)

// registry reads the parts' own counters whenever it is asked.
func registry(m *mesh, ads *server.Server, certificates *ca.Service, seen *observed, collector *otlp.Exporter) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, read func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	counter := func(name, help string, read func() float64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read))
	}
	gauge("tacitd_time_seconds", "The clock by which certificates are issued, as seconds since 1970.",
		func() float64 { return float64(time.Now().UnixMilli()) / 1000 })
	gauge("tacitd_proxies_connected", "Proxies that are sent the mesh now.",
		func() float64 { return float64(ads.Stats().Streams) })
	gauge("tacitd_snapshot_generation", "Generation of the mesh that is sent.",
		func() float64 { return float64(ads.Stats().Generation) })
	counter("tacitd_xds_responses_total", "Responses sent to proxies.",
		func() float64 { return float64(ads.Stats().Responses) })
	counter("tacitd_xds_rejections_total", "Responses that a proxy refused in part.",
		func() float64 { return float64(ads.Stats().Rejections) })
	counter("tacitd_certificates_issued_total", "Certificates signed for proxies.",
		func() float64 { return float64(certificates.Stats().Issued) })
	counter("tacitd_certificates_refused_total", "Certificate requests refused.",
		func() float64 { return float64(certificates.Stats().Refused) })
	gauge("tacitd_ca_not_after_timestamp_seconds", "When the CA's own certificate ends.",
		func() float64 { return float64(certificates.Authority.NotAfter().Unix()) })
	gauge("tacitd_manifest_errors", "Errors in the manifests as they are now.",
		func() float64 { errs, _ := m.counts(); return float64(errs) })
	gauge("tacitd_policies_not_enforced", "Policies that are not enforced as written, in whole or in part.",
		func() float64 { _, policies := m.counts(); return float64(policies) })
	gauge("tacitd_bypasses", "Bypasses that are in force.",
		func() float64 { bypasses, _ := m.bypassed(); return float64(bypasses) })
	gauge("tacitd_workloads_bypassed", "Workloads for which a bypass is in force.",
		func() float64 { _, workloads := m.bypassed(); return float64(workloads) })
	if collector != nil {
		counter("tacitd_otlp_exported_total", "Records of the audit log that the OpenTelemetry collector has taken.",
			func() float64 { return float64(collector.Logs().Sent) })
		counter("tacitd_otlp_dropped_total", "Records of the audit log that it has not taken, or that there was no room for.",
			func() float64 { return float64(collector.Logs().Dropped) })
	}
	return promhttp.HandlerFor(prometheus.Gatherers{r, prometheus.GathererFunc(seen.metrics)}, promhttp.HandlerOpts{})
}

// counts are the errors in manifests, and the policies that are not enforced
// as written.
func (m *mesh) counts() (errs, policies int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.errs), m.notEnforced
}

// bypassed is how many bypasses are in force, and for how many workloads.
func (m *mesh) bypassed() (bypasses, workloads int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.build.Bypasses()), m.build.Bypassed()
}
