package policy

import (
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Under a bypass policies deny nothing and what they would have denied is told,
// revocations apart. A connection that one has let in keeps that.
func TestBypass(t *testing.T) {
	const allow, deny = model.ActionAllow, model.ActionDeny
	suspended := func(policy, attribute string) Decision {
		return Decision{Allowed: true, Reason: ReasonBypassed, Bypass: "data/b", DryRun: policy, Attribute: attribute}
	}
	revoked := named(model.RevokedIdentityOf+"x", deny, when(fitting))
	for _, test := range []struct {
		name     string
		policies []*model.Policy
		names    []string
		want     Decision
	}{
		{"nothing denies", nil, nil, allowed(ReasonNoPolicy, "")},
		{"ALLOW matches", []*model.Policy{named("a", allow, when(fitting))}, nil, allowed(ReasonAllowed, "data/a")},
		{"DENY matches", []*model.Policy{named("a", deny, when(fitting))}, nil, suspended("data/a", "namespaces")},
		{"ALLOW does not match", []*model.Policy{named("a", allow, when(failing))}, nil, suspended("data/a", "namespaces")},
		{"a policy that was never seen", nil, []string{"data/x"}, suspended("data/x", "")},
		{"revoked", []*model.Policy{named("a", deny, when(fitting)), revoked}, nil, denied(ReasonDenied, revoked.Key(), "namespaces")},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, began := range []bool{false, true} {
				r, w := request(), destination(test.names...)
				if began {
					r.Bypass = "data/b"
				} else {
					w.Bypass = "data/b"
				}
				if got := Evaluate(world(w, test.policies...), &r); got != test.want {
					t.Errorf("of the connection %v:\n got %+v\nwant %+v", began, got, test.want)
				}
			}
		})
	}
	t.Run("limits", func(t *testing.T) {
		w := destination()
		w.Bypass = "data/b"
		limit := &model.Policy{Name: "l", Namespace: "data", Scope: model.ScopeNamespace, Action: model.ActionLimit, RateLimit: &model.RateLimit{
			Limits: []model.Limit{{Unit: model.LimitConnections}},
		}}
		r := request()
		if got := Limits(nil, world(w, limit), &r, model.LimitConnections); len(got) != 1 || !got[0].DryRun {
			t.Errorf("limits: %+v", got)
		}
	})
}
