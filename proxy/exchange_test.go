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
