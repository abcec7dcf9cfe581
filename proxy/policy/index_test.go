package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
)

// plainly decides by a full account of every policy, one by one.
func plainly(s *model.Snapshot, r *Request, anyRequest bool) Decision {
	e := newEvaluation(s, r)
	e.anyRequest = anyRequest
	var t tally
	t.enforced.foreign, t.all.foreign = e.foreign(), e.foreign()
	for _, list := range [...][]*model.Policy{s.GlobalPolicies(), s.NamespacePolicies(e.workload.Namespace)} {
		for _, p := range list {
			e.addPlainly(&t, p)
		}
	}
	for _, key := range e.workload.Policies {
		switch p, removed := s.Policy(key); {
		case p != nil:
			e.addPlainly(&t, p)
		case !removed:
			t.missing = cmp.Or(t.missing, key)
		}
	}
	return t.decision(s)
}

func (e *evaluation) addPlainly(t *tally, p *model.Policy) {
	if coversPort(p, e.request.Destination.Port()) {
		t.add(p, e.policy(p))
	}
}

// drawCrowd draws more policies than drawWorld, with ports, and actions of
// later versions, too.
func drawCrowd(t *rapid.T) []*model.Policy {
	policies := rapid.SliceOfN(rapid.Custom(drawPolicy), 0, 25).Draw(t, "crowd")
	for i, p := range policies {
		p.Name = fmt.Sprintf("%s%d", p.Name, i)
		p.Ports = rapid.SliceOfN(rapid.SampledFrom([]uint16{80, 81, 82}), 0, 1).Draw(t, "ports")
		switch rapid.IntRange(0, 19).Draw(t, "kind") {
		case 0:
			p.Action = model.ActionLimit + 1
		case 1:
			p.Action, p.RateLimit = model.ActionLimit, &model.RateLimit{}
		case 2:
			p.Action, p.Authentication = model.ActionAuthenticate, &model.RequestAuthentication{}
		}
		if p.Action == model.ActionCustom {
			p.Provider = &model.Provider{Name: rapid.SampledFrom([]string{"x", "x", "y"}).Draw(t, "provider")}
		}
	}
	return policies
}

// crowded is a world with the policies, of which the destination names those
// that are to be named and perhaps one that was never seen.
func crowded(missing bool, policies ...*model.Policy) *model.Snapshot {
	var names []string
	for _, p := range policies {
		if p.Scope == model.ScopeSelector {
			names = append(names, p.Key())
		}
	}
	if missing {
		names = append(names, "data/never")
	}
	return world(destination(names...), policies...)
}

// The index leaves out nothing that matters: not the policy, nor the attribute
// of it that a decision names. Of a crowd few policies decide, so each is also
// looked at alone.
func TestIndexAgreesWithThePlainEvaluation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := drawCrowd(t)
		worlds := []*model.Snapshot{crowded(rapid.IntRange(0, 9).Draw(t, "missing") == 0, policies...)}
		for _, p := range policies {
			worlds = append(worlds, crowded(false, p))
		}
		for range 20 {
			r := drawRequest(t)
			if rapid.IntRange(0, 9).Draw(t, "no source") == 0 {
				r.Source = netip.Addr{}
			}
			for _, s := range worlds {
				if d, want := Evaluate(s, &r), plainly(s, &r, false); d != want {
					t.Fatalf("%+v; one by one they say %+v", d, want)
				}
				if d, want := EvaluateConnection(s, &r), plainly(s, &r, true); d != want {
					t.Fatalf("connection: %+v; one by one they say %+v", d, want)
				}
			}
		}
	})
}

// What is remembered of workloads that are gone has a bound.
func TestMemoOfWorkloadsIsBounded(t *testing.T) {
	s := world(destination(), named("p", model.ActionAllow, anyRule...))
	for i := range 3 * maxKnown {
		w := destination()
		w.UID = fmt.Sprint(i)
		s = s.Apply(model.Update{Workloads: []*model.Workload{w}})
		r := request()
		r.Workload = w
		if d := Evaluate(s, &r); d.Reason != ReasonAllowed {
			t.Fatal(d)
		}
		s = s.Apply(model.Update{RemovedAddresses: []string{w.UID}})
	}
	n := 0
	for range s.Memo().Range {
		n++
	}
	if n > maxKnown+3 {
		t.Errorf("%d are remembered", n)
	}
}

// A change of policies leaves alone what was derived from others.
func TestChangesElsewhereCostNothing(t *testing.T) {
	s := world(destination(), named("p", model.ActionAllow, anyRule...), named("q", model.ActionDeny, when(either(model.Match{Principals: texts("a")}))))
	index := func() *indexedRule { return &covers(s, destination())[1].index.rules[0] }
	first := index()
	other := named("other", model.ActionDeny, anyRule...)
	other.Namespace = "elsewhere"
	for range 3 { // also where nobody asks in between
		s = s.Apply(model.Update{Policies: []*model.Policy{other}})
	}
	if index() != first {
		t.Error("a policy of another namespace has the index made again")
	}
	changed := named("q", model.ActionDeny, when(either(model.Match{Principals: texts("b")})))
	s = s.Apply(model.Update{Policies: []*model.Policy{changed}})
	if index() == first {
		t.Error("the index outlives a change of its policies")
	}
}
