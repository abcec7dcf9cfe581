package traffic

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
)

var (
	noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	web  = flows.Party{Namespace: "web", Name: "frontend"}
	api  = flows.Party{Namespace: "shop", Name: "api"}
	old  = flows.Party{Namespace: "legacy", Name: "cron"}
)

func pair(direction string, from, to flows.Party, security, why string, counts flows.Counts) flows.Pair {
	return flows.Pair{PairKey: flows.PairKey{Direction: direction, Source: from, Destination: to, Security: security, Why: why}, Counts: counts}
}

// Two nodes: a has the client, b the server, and both tell of what is between.
func nodes() (a, b admin.Coverage) {
	covered := []admin.WorkloadCoverage{
		{Party: old, Pods: 2}, {Party: flows.Party{Namespace: "kube", Name: "proxy"}, Pods: 3, Host: 3},
		{Party: api, Pods: 2, Captured: 2, Policy: true}, {Party: web, Pods: 2, Captured: 1},
	}
	a = admin.Coverage{
		Node: "a", Now: noon, Since: noon.Add(-time.Hour), Workloads: covered,
		Policies: []admin.PolicyUse{{Policy: "shop/never"}, {Policy: "shop/on-b"}},
		Pairs: []flows.Pair{
			pair("outbound", web, api, "mtls", "", flows.Counts{Connections: 5, Live: 1, Sent: 100}),
			pair("outbound", web, flows.Party{}, "passthrough", flows.WhyServerOutside, flows.Counts{Connections: 2}),
			pair("outbound", web, api, "skipped", flows.WhyServerSkips, flows.Counts{Connections: 1}),
		},
	}
	b = admin.Coverage{
		Node: "b", Now: noon.Add(time.Second), Since: noon.Add(-time.Minute), Workloads: covered,
		Policies: []admin.PolicyUse{{Policy: "shop/never"}, {Policy: "shop/on-b", Last: noon}},
		Pairs: []flows.Pair{
			pair("inbound", web, api, "mtls", "", flows.Counts{Connections: 5, Live: 1, Requests: 9, Denied: 2, Sent: 101}),
			pair("inbound", web, api, "local", "", flows.Counts{Connections: 1}),
			pair("inbound", old, api, "plain", flows.WhyClientNotInMesh, flows.Counts{Connections: 1, Denied: 3}),
			pair("inbound", flows.Party{}, api, "plain", flows.WhyClientOutside, flows.Counts{Denied: 4}),
		},
	}
	return a, b
}

func TestSum(t *testing.T) {
	c := Sum([]admin.Coverage{first(nodes()), second(nodes())})
	if want := (Shares{MTLS: 7, Plain: 1, Skipped: 1, Passthrough: 2, Denied: 9, Share: 7. / 11}); c.All != want {
		t.Errorf("all: %+v, want %+v: a connection counts once", c.All, want)
	}
	if want := (Shares{MTLS: 7, Plain: 1, Skipped: 1, Denied: 5, Share: 7. / 9}); c.Mesh != want {
		t.Errorf("within the mesh: %+v, want %+v", c.Mesh, want)
	}
	if c.Pairs[0].Source != web || c.Pairs[0].Requests != 9 || c.Pairs[0].Carried() != 7 || c.Pairs[0].Sent != 101 {
		t.Errorf("busiest pair %+v", c.Pairs[0])
	}
	wantReasons := []Reason{
		{"passthrough", flows.WhyServerOutside, 2}, {"plain", flows.WhyClientNotInMesh, 1}, {"skipped", flows.WhyServerSkips, 1},
	}
	if diff := cmp.Diff(wantReasons, c.Reasons); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
	if c.Workloads != 2 || c.PolicyCoverage != 0.5 || !cmp.Equal(c.WithoutPolicy, []flows.Party{web}) {
		t.Errorf("%d workloads, coverage %v, without %v", c.Workloads, c.PolicyCoverage, c.WithoutPolicy)
	}
	wantLeft := []NotCaptured{{old, 2, WhyNotEnrolled}, {flows.Party{Namespace: "kube", Name: "proxy"}, 3, WhyHost}, {web, 1, WhyNotEnrolled}}
	if diff := cmp.Diff(wantLeft, c.NotCaptured); diff != "" {
		t.Errorf("not captured (-want +got):\n%s", diff)
	}
	if !cmp.Equal(c.UnusedPolicies, []string{"shop/never"}) || c.Since != noon.Add(-time.Minute) {
		t.Errorf("unused %v, since %v", c.UnusedPolicies, c.Since)
	}
	byName := map[string]Namespace{}
	for _, n := range c.Namespaces {
		byName[n.Namespace] = n
	}
	if n := byName["shop"]; n.MTLS != 7 || n.Plain != 1 || n.Passthrough != 0 || n.Workloads != 1 || n.WithoutPolicy != 0 {
		t.Errorf("shop: %+v", n)
	}
	if n := byName["web"]; n.Passthrough != 2 || n.WithoutPolicy != 1 || n.Share != 7./10 {
		t.Errorf("web: %+v", n)
	}
}

// Without the server's node the client's tells of the pair.
func TestSumOfOneNode(t *testing.T) {
	c := Sum([]admin.Coverage{first(nodes())})
	if c.All.MTLS != 6 || c.All.Denied != 0 {
		t.Errorf("%+v", c.All)
	}
	if empty := Sum(nil); empty.All.Share != 1 || empty.PolicyCoverage != 1 {
		t.Errorf("of nothing: %+v", empty)
	}
}

func first(a, _ admin.Coverage) admin.Coverage  { return a }
func second(_, b admin.Coverage) admin.Coverage { return b }

func TestMetrics(t *testing.T) {
	a, b := nodes()
	b.Pairs = append(b.Pairs, pair("inbound", flows.Party{Namespace: "a\"\n", Name: "x"}, api, "mtls", "", flows.Counts{Connections: 1}))
	var out bytes.Buffer
	if err := Sum([]admin.Coverage{a, b}).WriteMetrics(&out, 1); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{
		`tacit_coverage_mtls_ratio{scope="mesh"} 0.8`, `tacit_coverage_policy_ratio 0.5`, `tacit_coverage_nodes_missing 1`,
		`tacit_coverage_connections{namespace="shop",security="mtls"} 8`, `tacit_coverage_workloads_without_policy{namespace="web"} 1`,
		`tacit_coverage_not_mtls_connections{security="plain",why="client_not_enrolled"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if families, err := parser.TextToMetricFamilies(&out); err != nil || len(families) != 10 {
		t.Errorf("%d families, %v", len(families), err)
	}
}
