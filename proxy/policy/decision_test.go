package policy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/model"
)

var (
	fitting = either(model.Match{Namespaces: texts("shop")})
	failing = either(model.Match{Namespaces: texts("other")})
)

func scoped(p *model.Policy, namespace string, scope model.PolicyScope) *model.Policy {
	p.Namespace, p.Scope = namespace, scope
	return p
}

func dry(p *model.Policy) *model.Policy {
	p.DryRun = true
	return p
}

func unknown(p *model.Policy) *model.Policy {
	p.Unknown = "field 9"
	return p
}

func allowed(reason Reason, policy string) Decision {
	return Decision{Allowed: true, Reason: reason, Policy: policy}
}

func denied(reason Reason, policy, attribute string) Decision {
	return Decision{Reason: reason, Policy: policy, Attribute: attribute}
}

func audited(d Decision, policy string) Decision {
	d.Audit = policy
	return d
}

func TestDecisions(t *testing.T) {
	const allow, deny, audit = model.ActionAllow, model.ActionDeny, model.ActionAudit
	noPolicy := allowed(ReasonNoPolicy, "")
	tests := []struct {
		name     string
		policies []*model.Policy
		names    []string // that the workload's list has
		removed  []string
		want     Decision
	}{
		{name: "no policy", want: noPolicy},
		{name: "ALLOW matches", policies: []*model.Policy{named("a", allow, when(fitting))}, want: allowed(ReasonAllowed, "data/a")},
		{name: "ALLOW does not match", policies: []*model.Policy{named("a", allow, when(failing))}, want: denied(ReasonNotAllowed, "data/a", "namespaces")},
		{name: "ALLOW without rules", policies: []*model.Policy{named("a", allow)}, want: denied(ReasonNotAllowed, "data/a", "")},
		{name: "DENY without rules", policies: []*model.Policy{named("a", deny)}, want: noPolicy},
		{name: "DENY matches", policies: []*model.Policy{named("a", deny, when(fitting))}, want: denied(ReasonDenied, "data/a", "namespaces")},
		{name: "DENY does not match", policies: []*model.Policy{named("a", deny, when(failing))}, want: noPolicy},
		{name: "DENY before ALLOW", policies: []*model.Policy{named("a", allow, anyRule...), named("b", deny, anyRule...)}, want: denied(ReasonDenied, "data/b", "")},
		{name: "second ALLOW", policies: []*model.Policy{named("a", allow, when(failing)), named("b", allow, when(fitting))}, want: allowed(ReasonAllowed, "data/b")},

		{name: "AUDIT matches", policies: []*model.Policy{named("a", audit, when(fitting))}, want: audited(noPolicy, "data/a")},
		{name: "AUDIT does not match", policies: []*model.Policy{named("a", audit, when(failing))}, want: noPolicy},
		{name: "AUDIT allows nothing", policies: []*model.Policy{named("a", allow, when(failing)), named("b", audit, anyRule...)}, want: audited(denied(ReasonNotAllowed, "data/a", "namespaces"), "data/b")},
		{name: "AUDIT beside DENY", policies: []*model.Policy{named("a", deny, anyRule...), named("b", audit, anyRule...)}, want: audited(denied(ReasonDenied, "data/a", ""), "data/b")},

		{name: "rule without clauses", policies: []*model.Policy{named("a", allow, when())}, want: allowed(ReasonAllowed, "data/a")},
		{name: "empty clause", policies: []*model.Policy{named("a", allow, when(either()))}, want: allowed(ReasonAllowed, "data/a")},
		{name: "empty match", policies: []*model.Policy{named("a", allow, when(either(model.Match{})))}, want: denied(ReasonNotAllowed, "data/a", "")},
		{name: "all clauses", policies: []*model.Policy{named("a", allow, when(fitting, failing))}, want: denied(ReasonNotAllowed, "data/a", "namespaces")},
		{name: "any match", policies: []*model.Policy{named("a", allow, when(either(failing.Matches[0], fitting.Matches[0])))}, want: allowed(ReasonAllowed, "data/a")},
		{name: "any rule", policies: []*model.Policy{named("a", allow, when(failing), when(fitting))}, want: allowed(ReasonAllowed, "data/a")},

		{name: "mesh scope", policies: []*model.Policy{scoped(named("a", deny, anyRule...), "tacit-system", model.ScopeGlobal)}, want: denied(ReasonDenied, "tacit-system/a", "")},
		{name: "namespace of another", policies: []*model.Policy{scoped(named("a", deny, anyRule...), "shop", model.ScopeNamespace)}, want: noPolicy},
		{name: "selector, not named", policies: []*model.Policy{scoped(named("a", deny, anyRule...), "data", model.ScopeSelector)}, want: noPolicy},
		{name: "selector, named", policies: []*model.Policy{scoped(named("a", deny, anyRule...), "data", model.ScopeSelector)}, names: []string{"data/a"}, want: denied(ReasonDenied, "data/a", "")},
		{name: "selector of the root namespace, named", policies: []*model.Policy{scoped(named("a", deny, anyRule...), "tacit-system", model.ScopeSelector)}, names: []string{"tacit-system/a"}, want: denied(ReasonDenied, "tacit-system/a", "")},
		{name: "scope of a later version", policies: []*model.Policy{scoped(named("a", deny, anyRule...), "shop", 7)}, want: denied(ReasonDenied, "shop/a", "")},

		{name: "named, never seen", names: []string{"data/a"}, want: denied(ReasonMissingPolicy, "data/a", "")},
		{name: "named, removed", names: []string{"data/a"}, removed: []string{"data/a"}, want: noPolicy},
		{name: "missing before ALLOW", policies: []*model.Policy{named("b", allow, anyRule...)}, names: []string{"data/a"}, want: denied(ReasonMissingPolicy, "data/a", "")},
		{name: "DENY before missing", policies: []*model.Policy{named("b", deny, anyRule...)}, names: []string{"data/a"}, want: denied(ReasonDenied, "data/b", "")},

		{name: "unknown: ALLOW policy", policies: []*model.Policy{unknown(named("a", allow, anyRule...))}, want: denied(ReasonNotAllowed, "data/a", "field 9")},
		{name: "unknown: DENY policy", policies: []*model.Policy{unknown(named("a", deny))}, want: denied(ReasonDenied, "data/a", "field 9")},
		{name: "unknown: ALLOW rule", policies: []*model.Policy{named("a", allow, model.Rule{Unknown: "field 9"})}, want: denied(ReasonNotAllowed, "data/a", "field 9")},
		{name: "unknown: DENY rule", policies: []*model.Policy{named("a", deny, model.Rule{Unknown: "field 9", Clauses: []model.Clause{failing}})}, want: denied(ReasonDenied, "data/a", "field 9")},
		{name: "unknown: ALLOW clause", policies: []*model.Policy{named("a", allow, when(model.Clause{Unknown: "field 9"}))}, want: denied(ReasonNotAllowed, "data/a", "field 9")},
		{name: "unknown: DENY clause", policies: []*model.Policy{named("a", deny, when(model.Clause{Unknown: "field 9", Matches: failing.Matches}))}, want: denied(ReasonDenied, "data/a", "field 9")},
		{name: "unknown: DENY clause beside one that fails", policies: []*model.Policy{named("a", deny, when(model.Clause{Unknown: "field 9"}, failing))}, want: noPolicy},
		{name: "unknown: action", policies: []*model.Policy{named("a", 7)}, want: denied(ReasonDenied, "data/a", "action")},
		{name: "unknown ALLOW rule beside one that fits", policies: []*model.Policy{named("a", allow, model.Rule{Unknown: "x"}, when(fitting))}, want: allowed(ReasonAllowed, "data/a")},

		{
			name: "closest", policies: []*model.Policy{
				named("a", allow, when(failing)),
				named("b", allow, when(fitting, either(model.Match{DestinationPorts: []uint16{80}}))),
				named("c", allow, when(either(model.Match{Principals: texts("*"), Namespaces: texts("other")}))),
			},
			want: denied(ReasonNotAllowed, "data/b", "ports"),
		},

		{
			name: "dry run: DENY would deny", policies: []*model.Policy{dry(named("a", deny, anyRule...))},
			want: Decision{Allowed: true, Reason: ReasonNoPolicy, DryRun: "data/a"},
		},
		{name: "dry run: DENY does not match", policies: []*model.Policy{dry(named("a", deny, when(failing)))}, want: noPolicy},
		{
			name: "dry run: ALLOW would allow", policies: []*model.Policy{named("a", allow), dry(named("b", allow, anyRule...))},
			want: Decision{Reason: ReasonNotAllowed, Policy: "data/a", DryRun: "data/b"},
		},
		{
			name: "dry run: ALLOW would be the only one and fails", policies: []*model.Policy{dry(named("a", allow, when(failing)))},
			want: Decision{Allowed: true, Reason: ReasonNoPolicy, DryRun: "data/a"},
		},
		{name: "dry run: ALLOW fails beside one that allows", policies: []*model.Policy{dry(named("a", allow)), named("b", allow, anyRule...)}, want: allowed(ReasonAllowed, "data/b")},
		{name: "dry run: DENY where denied anyway", policies: []*model.Policy{dry(named("a", deny, anyRule...)), named("b", allow)}, want: denied(ReasonNotAllowed, "data/b", "")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := world(destination(tt.names...), tt.policies...).Apply(model.Update{RemovedPolicies: tt.removed})
			r := request()
			if diff := cmp.Diff(tt.want, Evaluate(s, &r)); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNothingIsAllowedBeforeTheFirstPolicies(t *testing.T) {
	r := request()
	s := model.NewSnapshot().Apply(model.Update{Workloads: []*model.Workload{destination()}, AddressesComplete: true})
	if d := Evaluate(s, &r); d.Allowed || d.Reason != ReasonNotReady {
		t.Errorf("before the first policies: %v", d)
	}
	if steps := Explain(s, &r); steps != nil {
		t.Errorf("before the first policies: steps %v", steps)
	}
}

func TestUnknownDestinationIsDenied(t *testing.T) {
	s := world(destination())
	elsewhere := destination()
	elsewhere.UID = "k//Pod/data/gone"
	for _, w := range []*model.Workload{nil, elsewhere} {
		r := request()
		r.Workload = w
		if d := Evaluate(s, &r); d.Allowed || d.Reason != ReasonUnknownWorkload {
			t.Errorf("workload %v: %v", w, d)
		}
		if steps := Explain(s, &r); steps != nil {
			t.Errorf("workload %v: steps %v", w, steps)
		}
	}
}

func TestTheSnapshotsDestinationCounts(t *testing.T) {
	s := world(destination("data/strict"), scoped(named("strict", model.ActionDeny, anyRule...), "data", model.ScopeSelector))
	r := request() // made when the workload named no policy
	if d := Evaluate(s, &r); d.Allowed {
		t.Errorf("request with an older version of the workload: %v", d)
	}
}

// Federation says who somebody is. Who may come, policies say.
func TestOtherTrustDomains(t *testing.T) {
	friend := model.Identity{TrustDomain: "friend.test", Namespace: "shop", ServiceAccount: "web"}
	named := named("a", model.ActionAllow, when(either(model.Match{Principals: texts("friend.test/ns/shop/sa/web")})))
	for _, tt := range []struct {
		name string
		s    *model.Snapshot
		want Decision
	}{
		{"without a policy", world(destination()), denied(ReasonForeign, "", "")},
		{"named by one", world(destination(), named), allowed(ReasonAllowed, "data/a")},
	} {
		r := request()
		r.Identity = friend
		if diff := cmp.Diff(tt.want, Evaluate(tt.s, &r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestRevokedIsDenied(t *testing.T) {
	r := request()
	r.Revoked = true
	if d := Evaluate(world(destination(), named("a", model.ActionAllow, anyRule...)), &r); d.Allowed || d.Reason != ReasonRevoked {
		t.Errorf("%v", d)
	}
}

func TestNextEdge(t *testing.T) {
	in := func(m model.Match) *model.Policy { return named("p", model.ActionAllow, when(either(m))) }
	tests := []struct {
		name     string
		policies []*model.Policy
		after    time.Time
		want     time.Time
	}{
		{"none", []*model.Policy{in(model.Match{Namespaces: texts("*")})}, noon, time.Time{}},
		{"end of the day's window", []*model.Policy{in(model.Match{Times: window(8, 18)})}, noon, noon.Add(6 * time.Hour)},
		{"a negation's", []*model.Policy{in(model.Match{NotTimes: window(8, 18)})}, noon, noon.Add(6 * time.Hour)},
		{"tomorrow", []*model.Policy{in(model.Match{Times: window(8, 11)})}, noon, noon.Add(20 * time.Hour)},
		{"strictly after", []*model.Policy{in(model.Match{Times: window(12, 18)})}, noon, noon.Add(6 * time.Hour)},
		{"across midnight", []*model.Policy{in(model.Match{Times: window(22, 6)})}, noon.Add(11 * time.Hour), noon.Add(18 * time.Hour)},
		{
			"a limit's", []*model.Policy{{Name: "p", Namespace: "x", Action: model.ActionLimit, RateLimit: &model.RateLimit{
				Limits: []model.Limit{{Unit: model.LimitBytes, Rules: []model.Rule{when(either(model.Match{Times: window(8, 18)}))}}},
			}}},
			noon, noon.Add(6 * time.Hour),
		},
		{
			"the earliest", []*model.Policy{
				in(model.Match{Times: window(8, 18)}),
				{Name: "q", Namespace: "x", Rules: []model.Rule{when(either(model.Match{Times: window(3, 14)}))}},
			},
			noon, noon.Add(2 * time.Hour),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := NextEdge(world(destination(), tt.policies...), tt.after); !got.Equal(tt.want) {
				t.Errorf("NextEdge(%v) = %v, want %v", tt.after, got, tt.want)
			}
		})
	}
}

// busy is a mesh in which a decision looks at some of everything.
func busy() (*model.Snapshot, Request) {
	keys := []string{"data/by-label", "data/never"}
	policies := []*model.Policy{
		scoped(named("strict", model.ActionDeny, when(either(model.Match{NotPrincipals: texts("*")}))), "tacit-system", model.ScopeGlobal),
		named("no-batch", model.ActionDeny, when(either(model.Match{Namespaces: texts("batch"), NotSourceIPs: cidrs("10.1.0.0/16")}))),
		named("hours", model.ActionDeny, when(either(model.Match{NotTimes: window(6, 22)}))),
		dry(named("trial", model.ActionDeny, when(either(model.Match{Principals: texts("*/sa/web")})))),
		scoped(named("by-label", model.ActionAllow, when(either(model.Match{SourceLabels: label("app", "api", "web*")}), either(model.Match{DestinationPorts: []uint16{5432}}))), "data", model.ScopeSelector),
		named("accounts", model.ActionAllow, when(either(model.Match{ServiceAccounts: []model.ServiceAccount{{Namespace: "shop", Name: "api"}}}))),
	}
	s := world(destination(keys...), policies...).Apply(model.Update{RemovedPolicies: []string{"data/never"}})
	return s, request()
}

func TestEvaluateAllocatesNothing(t *testing.T) {
	s, allow := busy()
	deny, closest := allow, allow
	plaintext(&deny)
	to("10.0.0.9:80")(&closest)
	for _, r := range []*Request{&allow, &deny, &closest} {
		if n := testing.AllocsPerRun(100, func() { Evaluate(s, r) }); n != 0 {
			t.Errorf("%v: %v allocations", Evaluate(s, r), n)
		}
	}
}

func BenchmarkEvaluate(b *testing.B) {
	s, r := busy()
	b.ReportAllocs()
	for b.Loop() {
		Evaluate(s, &r)
	}
}
