package admin

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A workload has a policy if one in force says for all of its pods who may
// call: a dry run, a demand for mTLS or a limit does not.
func TestWorkloadCoverage(t *testing.T) {
	owned := func(namespace, name, owner string, edits ...func(*model.Workload)) *model.Workload {
		w := pod(namespace, name, "198.18.7."+string(name[len(name)-1]), edits...)
		w.WorkloadName = owner
		return w
	}
	policies := func(keys ...string) func(*model.Workload) { return func(w *model.Workload) { w.Policies = keys } }
	policy := func(name string, edits ...func(*model.Policy)) *model.Policy {
		p := &model.Policy{Name: name, Namespace: "shop", Scope: model.ScopeSelector, Action: model.ActionDeny}
		for _, edit := range edits {
			edit(p)
		}
		return p
	}
	s := model.NewSnapshot().Apply(model.Update{
		AddressesComplete: true, PoliciesComplete: true,
		Workloads: []*model.Workload{
			owned("shop", "whole-1", "whole", policies("shop/deny")), owned("shop", "whole-2", "whole", policies("shop/deny")),
			owned("shop", "half-3", "half", policies("shop/deny")), owned("shop", "half-4", "half"),
			owned("shop", "dry-5", "", policies("shop/dry")),
			owned("shop", "strict-6", "", policies("shop/istio_converted_static_strict", "shop/converted_peer_authentication_x")),
			owned("shop", "limited-7", "", policies("shop/limit")),
			owned("shop", "gone-8", "", policies("shop/none")),
			owned("all", "namespaced-9", "", func(w *model.Workload) { w.Protocol = model.ProtocolTCP }),
			owned("shop", "host-0", "", func(w *model.Workload) {
				w.HostNetwork, w.Addresses = true, []netip.Addr{netip.MustParseAddr("198.18.8.1")}
			}),
		},
		Policies: []*model.Policy{
			policy("deny"), policy("dry", func(p *model.Policy) { p.DryRun = true }),
			policy("istio_converted_static_strict"), policy("converted_peer_authentication_x"),
			policy("limit", func(p *model.Policy) { p.Action = model.ActionLimit }),
			policy("namespace", func(p *model.Policy) {
				p.Namespace, p.Scope, p.Action, p.Rules = "all", model.ScopeNamespace, model.ActionAllow, []model.Rule{{}}
			}),
			policy("nothing", func(p *model.Policy) { p.Action = model.ActionAllow }), // decides by matching nothing
		},
	})
	l := flows.New(10, noon)
	e := flow("shop/frontend", "shop/backend-1", "denied")
	e.Policy, e.Matched, e.Time = "shop/deny", true, noon
	l.Add(e)
	server := &Server{Path: t.TempDir() + "/admin.sock", Node: "node-a", Snapshot: func() *model.Snapshot { return s }, Flows: l}
	client, _ := start(t, server)
	code, body := get(t, client, "/coverage")
	var answer Coverage
	if err := json.Unmarshal(body, &answer); err != nil || code != 200 {
		t.Fatalf("%d %v: %s", code, err, body)
	}
	one := func(namespace, name string, captured, host int, policy bool) WorkloadCoverage {
		return WorkloadCoverage{Party: flows.Party{Namespace: namespace, Name: name}, Pods: 1, Captured: captured, Host: host, Policy: policy}
	}
	want := []WorkloadCoverage{
		one("all", "namespaced-9", 0, 0, true), one("shop", "dry-5", 1, 0, false), one("shop", "gone-8", 1, 0, false),
		{Party: flows.Party{Namespace: "shop", Name: "half"}, Pods: 2, Captured: 2},
		one("shop", "host-0", 0, 1, false), one("shop", "limited-7", 1, 0, false), one("shop", "strict-6", 1, 0, false),
		{Party: flows.Party{Namespace: "shop", Name: "whole"}, Pods: 2, Captured: 2, Policy: true},
	}
	if diff := cmp.Diff(want, answer.Workloads); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]PolicyUse{{Policy: "all/namespace"}, {"shop/deny", noon}}, answer.Policies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	if len(answer.Pairs) != 1 || answer.Pairs[0].Denied != 1 || answer.Node != "node-a" || !answer.Since.Equal(noon) || time.Since(answer.Now) > time.Hour {
		t.Errorf("%+v", answer)
	}
	// A proxy that keeps no flows still says what no policy covers.
	server.Flows = nil
	if code, body := get(t, client, "/coverage"); code != 200 || json.Unmarshal(body, &answer) != nil || len(answer.Workloads) != len(want) {
		t.Errorf("without flows: %d %s", code, body)
	}
}
