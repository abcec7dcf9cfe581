package traffic

import (
	"fmt"
	"io"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// WriteMetrics writes the coverage in Prometheus' text form; missing is how
// many nodes gave no answer.
func (c *Coverage) WriteMetrics(out io.Writer, missing int) error {
	for _, f := range c.Metrics(missing) {
		if _, err := expfmt.MetricFamilyToText(out, f); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	return nil
}

// Metrics is the coverage as metrics.
func (c *Coverage) Metrics(missing int) (all []*dto.MetricFamily) {
	connections := family("tacit_coverage_connections", "Connections that carried bytes since tacit_coverage_since_seconds, by namespace and by how they travelled.")
	shares := family("tacit_coverage_mtls_ratio", "Share of connections that were mutual TLS; scope all, or mesh for those between two workloads of the mesh.")
	namespaced := family("tacit_coverage_namespace_mtls_ratio", "Share of a namespace's connections that were mutual TLS.")
	workloads := family("tacit_coverage_workloads", "Workloads with captured pods.")
	without := family("tacit_coverage_workloads_without_policy", "Workloads with captured pods that no AuthorizationPolicy covers.")
	for _, n := range c.Namespaces {
		for _, s := range []struct {
			security string
			count    uint64
		}{{"mtls", n.MTLS}, {"plain", n.Plain}, {"skipped", n.Skipped}, {"passthrough", n.Passthrough}} {
			gauge(connections, float64(s.count), "namespace", n.Namespace, "security", s.security)
		}
		gauge(namespaced, n.Share, "namespace", n.Namespace)
		gauge(workloads, float64(n.Workloads), "namespace", n.Namespace)
		gauge(without, float64(n.WithoutPolicy), "namespace", n.Namespace)
	}
	gauge(shares, c.All.Share, "scope", "all")
	gauge(shares, c.Mesh.Share, "scope", "mesh")
	reasons := family("tacit_coverage_not_mtls_connections", "Connections that were not mutual TLS, by why.")
	for _, r := range c.Reasons {
		gauge(reasons, float64(r.Connections), "security", r.Security, "why", r.Why)
	}
	policies := family("tacit_coverage_policy_ratio", "Share of workloads with captured pods that an AuthorizationPolicy covers.")
	gauge(policies, c.PolicyCoverage)
	unused := family("tacit_coverage_unused_policies", "AuthorizationPolicies that have decided about nothing for as long as is counted.")
	gauge(unused, float64(len(c.UnusedPolicies)))
	weekly := family("tacit_coverage_policies_unused_for_a_week", "AuthorizationPolicies that were in force for the last seven days and have decided about nothing.")
	remembered := family("tacit_coverage_policies_remembered_since_seconds", "When the first of the policies in force was first seen, in Unix time: before a week is over none can have been unused for one.")
	if c.Week != nil {
		gauge(weekly, float64(len(c.Week.Unused)))
		gauge(remembered, float64(c.Week.Since.Unix()))
	}
	since := family("tacit_coverage_since_seconds", "When counting began, in Unix time.")
	gauge(since, float64(c.Since.Unix()))
	away := family("tacit_coverage_nodes_missing", "Nodes that gave no answer and so are not counted.")
	gauge(away, float64(missing))
	for _, f := range []*dto.MetricFamily{shares, namespaced, connections, reasons, policies, workloads, without, unused, weekly, remembered, since, away} {
		if len(f.Metric) == 0 {
			continue
		}
		all = append(all, f)
	}
	return all
}

func family(name, help string) *dto.MetricFamily {
	kind := dto.MetricType_GAUGE
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
}

// gauge adds a value; labels are names and values in turn.
func gauge(f *dto.MetricFamily, value float64, labels ...string) {
	m := &dto.Metric{Gauge: &dto.Gauge{Value: &value}}
	for i := 0; i+1 < len(labels); i += 2 {
		m.Label = append(m.Label, &dto.LabelPair{Name: &labels[i], Value: &labels[i+1]})
	}
	f.Metric = append(f.Metric, m)
}
