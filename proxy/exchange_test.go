package proxy

import (
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A change of policy ends requests that are no longer allowed. Of those that
// are refused it does not cut off the answer.
func TestReviewsOfRequests(t *testing.T) {
	denying := func(path string) *model.Policy {
		match := model.HTTPMatch{Paths: []model.StringMatch{{Value: path}}}
		return &model.Policy{
			Name: "deny", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionDeny,
			Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &match}}}}}},
		}
	}
	s := startOneServer(t, echoing(t), denying("/denied"))
	c := s.arrived(t)
	r := &requests{proxy: s.Proxy, conn: c, live: map[*exchange]struct{}{}}
	begin := func(path string) (http.Exchange, *bool) {
		aborted := new(bool)
		return r.Begin(&http.Request{Protocol: http.HTTP1, Minor: 1, Method: "GET", Target: path, Host: "server"}, &http.Live{Abort: func() { *aborted = true }}), aborted
	}
	refused, cutOff := begin("/denied")
	allowed, ended := begin("/allowed")
	review := func(after string) {
		t.Helper()
		snapshot := s.State.Snapshot()
		facts, _ := c.facts(snapshot, time.Now())
		r.review(snapshot, facts)
		if *cutOff {
			t.Errorf("%s: the answer to a request that is refused was cut off", after)
		}
	}
	review("no change")
	if *ended {
		t.Error("a request that is allowed was ended")
	}
	s.State.Apply(model.Update{Policies: []*model.Policy{denying("/allowed")}})
	review("another policy")
	if !*ended {
		t.Error("a request that is no longer allowed goes on")
	}
	if d := refused.Decision(http.Content{}); d.Refusal == nil || d.Refusal.Status != 403 {
		t.Errorf("%+v", d)
	}
	for _, x := range []http.Exchange{refused, allowed} {
		x.End(http.Result{})
	}
}

// CONNECT is let through where an ALLOW policy names the method, and nowhere
// else: what goes through the tunnel nobody decides on.
func TestConnectIsNamed(t *testing.T) {
	methods := func(not bool, values ...string) *model.Policy {
		var texts []model.StringMatch
		for _, v := range values {
			texts = append(texts, model.ParseStringMatch(v))
		}
		match := model.HTTPMatch{Methods: texts}
		if not {
			match = model.HTTPMatch{NotMethods: texts}
		}
		return &model.Policy{
			Name: "allow", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionAllow,
			Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &match}}}}}},
		}
	}
	denying := methods(false, "TRACE")
	denying.Name, denying.Action = "deny", model.ActionDeny
	for _, test := range []struct {
		name     string
		policies []*model.Policy
		allowed  bool
	}{
		{"named", []*model.Policy{methods(false, "GET", "CONNECT")}, true},
		{"another", []*model.Policy{methods(false, "GET")}, false},
		{"any method", []*model.Policy{methods(false, "*")}, false},
		{"any but one", []*model.Policy{methods(true, "GET")}, false},
		{"only some are denied", []*model.Policy{denying}, false},
		{"named, and others are denied", []*model.Policy{methods(false, "CONNECT"), denying}, true},
	} {
		s := startOneServer(t, echoing(t), test.policies...)
		r := &requests{proxy: s.Proxy, conn: s.arrived(t), live: map[*exchange]struct{}{}}
		x := r.Begin(&http.Request{Protocol: http.HTTP1, Minor: 1, Method: "CONNECT", Target: "x:80", Host: "x:80"}, &http.Live{Abort: func() {}})
		if d := x.Decision(http.Content{Whole: true}); (d.Refusal == nil) != test.allowed {
			t.Errorf("%s: %+v", test.name, d.Refusal)
		}
		x.End(http.Result{})
	}
}
