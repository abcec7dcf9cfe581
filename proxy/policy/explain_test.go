package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/model"
)

func TestExplain(t *testing.T) {
	policies := []*model.Policy{
		scoped(named("strict", model.ActionDeny, when(either(model.Match{NotPrincipals: texts("*")}))), "tacit-system", model.ScopeGlobal),
		named("a", model.ActionAllow),
		dry(named("b", model.ActionAllow, model.Rule{})),
		named("c", model.ActionAllow, when(failing), when(either(model.Match{Principals: texts("*"), DestinationPorts: []uint16{80, 443}}))),
		named("d", model.ActionDeny, when(either(model.Match{Unknown: "extensions[0]"}))),
		named("e", model.ActionAllow, when(either(model.Match{SourceLabels: append(label("app", "web"), label("zone", "a", "b")...)}))),
		scoped(named("f", model.ActionDeny, when(either(model.Match{SourceIPs: cidrs("10.0.0.0/24")}))), "data", model.ScopeSelector),
	}
	names := []string{"data/f", "data/gone", "data/never"}
	s := world(destination(names...), policies...).Apply(model.Update{RemovedPolicies: []string{"data/gone"}})
	r := request()
	var got []string
	for _, step := range Explain(s, &r) {
		got = append(got, step.String())
	}
	want := []string{
		"tacit-system/strict (DENY, mesh): not matched; closest rule 0: notPrincipals: wanted not *, got cluster.local/ns/shop/sa/web",
		"data/a (ALLOW, namespace): no rule can match",
		"data/b (ALLOW, namespace, dry run): matched by rule 0",
		"data/c (ALLOW, namespace): not matched; closest rule 1: ports: wanted one of 80, 443, got 5432",
		"data/d (DENY, namespace): matched, because it has a part that is not understood (extensions[0])",
		"data/e (ALLOW, namespace): not matched; closest rule 0: source.labels[zone]: wanted one of a, b, got unknown (the control plane has not sent this label)",
		"data/f (DENY, workload): matched by rule 0: ipBlocks: wanted 10.0.0.0/24, got 10.0.0.1",
		"data/gone: removed by the control plane, skipped",
		"data/never: named by the workload, but never received",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

// Each attribute is described by its own values and the request's own facts.
func TestExplainDescribesEveryAttribute(t *testing.T) {
	accounts := []model.ServiceAccount{{Namespace: "a", Name: "b"}, {Namespace: "shop", Name: "web"}}
	tests := []struct {
		match                     model.Match
		request                   func(*Request)
		attribute, wanted, actual string
	}{
		{model.Match{Principals: texts("x*", "y")}, nil, "principals", "one of x*, y", "cluster.local/ns/shop/sa/web"},
		{model.Match{Principals: texts("*")}, plaintext, "principals", "*", "no identity (plaintext)"},
		{model.Match{NotPrincipals: texts("*")}, nil, "notPrincipals", "not *", "cluster.local/ns/shop/sa/web"},
		{model.Match{Namespaces: texts("x")}, nil, "namespaces", "x", "shop"},
		{model.Match{NotNamespaces: texts("x", "shop")}, nil, "notNamespaces", "none of x, shop", "shop"},
		{model.Match{ServiceAccounts: accounts[:1]}, nil, "serviceAccounts", "a/b", "shop/web"},
		{model.Match{NotServiceAccounts: accounts}, nil, "notServiceAccounts", "none of a/b, shop/web", "shop/web"},
		{model.Match{SourceIPs: cidrs("10.2.0.0/16")}, from("::ffff:10.0.0.1"), "ipBlocks", "10.2.0.0/16", "10.0.0.1"},
		{model.Match{NotSourceIPs: cidrs("10.0.0.0/16")}, nil, "notIpBlocks", "not 10.0.0.0/16", "10.0.0.1"},
		{model.Match{DestinationIPs: cidrs("10.2.0.0/16")}, nil, "destination.ip", "10.2.0.0/16", "10.0.0.9"},
		{model.Match{NotDestinationIPs: cidrs("10.0.0.0/16")}, nil, "destination.ip.notValues", "not 10.0.0.0/16", "10.0.0.9"},
		{model.Match{DestinationPorts: []uint16{80}}, nil, "ports", "80", "5432"},
		{model.Match{NotDestinationPorts: []uint16{5432}}, nil, "notPorts", "not 5432", "5432"},
		{model.Match{SourceLabels: append(label("app", "web"), label("tier", "x")...)}, nil, "source.labels[tier]", "x", `""`},
		{model.Match{NotSourceLabels: label("app", "web")}, nil, "source.labels[app]", "not web", `"web"`},
		{model.Match{SourceLabels: label("app", "web")}, stranger, "source.labels[app]", "web", "unknown (no workload at the source address has the caller's identity)"},
		{model.Match{Times: window(22, 6)}, nil, "request.time", "22:00:00-06:00:00", "12:00:00"},
		{model.Match{NotTimes: window(8, 18)}, nil, "request.time.notValues", "not 08:00:00-18:00:00", "12:00:00"},
	}
	for _, tt := range tests {
		r := request()
		if tt.request != nil {
			tt.request(&r)
		}
		steps := Explain(world(destination(), named("p", model.ActionAllow, when(either(tt.match)))), &r)
		want := []Step{{
			Policy: "data/p", Action: "ALLOW", Scope: "namespace",
			Attribute: tt.attribute, Wanted: tt.wanted, Actual: tt.actual,
		}}
		if diff := cmp.Diff(want, steps); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.attribute, diff)
		}
	}
}

func TestDecisionsInWords(t *testing.T) {
	tests := []struct {
		decision Decision
		want     string
	}{
		{Decision{}, "denied: undecided"},
		{Decision{Reason: ReasonNotReady}, "denied: the control plane has not sent its policies yet"},
		{Decision{Reason: ReasonUnknownWorkload}, "denied: the control plane has not sent the destination workload"},
		{denied(ReasonMissingPolicy, "a/b", ""), "denied: policy a/b is named by the workload, and the control plane has not sent it"},
		{denied(ReasonDenied, "a/b", ""), "denied by policy a/b"},
		{denied(ReasonDenied, "a/b", "notPrincipals"), "denied by policy a/b (matched: notPrincipals)"},
		{denied(ReasonNotAllowed, "a/b", ""), "denied: no ALLOW policy matched; policy a/b has no rule that could"},
		{denied(ReasonNotAllowed, "a/b", "ports"), "denied: no ALLOW policy matched; closest was a/b (not matched: ports)"},
		{allowed(ReasonAllowed, "a/b"), "allowed by policy a/b"},
		{allowed(ReasonNoPolicy, ""), "allowed: no ALLOW policy covers the workload"},
		{Decision{Allowed: true, Reason: ReasonNoPolicy, DryRun: "a/c"}, "allowed: no ALLOW policy covers the workload; dry run: policy a/c would deny"},
		{Decision{Reason: ReasonDenied, Policy: "a/b", DryRun: "a/c"}, "denied by policy a/b; dry run: policy a/c would allow"},
	}
	for _, tt := range tests {
		if got := tt.decision.String(); got != tt.want {
			t.Errorf("%#v:\n got %s\nwant %s", tt.decision, got, tt.want)
		}
	}
}

// Dashboards and alerts name these.
func TestReasonsAsLabels(t *testing.T) {
	want := []string{
		"undecided", "not_ready", "unknown_workload", "missing_policy",
		"denied", "not_allowed", "allowed", "no_policy", "ask", "requests_now", "revoked", "foreign_trust_domain", "rate_limited", "bypassed", "unknown",
	}
	for i, label := range want {
		if got := Reason(i).String(); got != label {
			t.Errorf("Reason(%d) = %q, want %q", i, got, label)
		}
	}
}
