package proxy

import (
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// What allows requests alone denies no connection about which it is not yet
// known that it carries requests; and a review that comes that early has it
// decided on anew.
func TestReviewComesTooEarly(t *testing.T) {
	s := startOneServer(t, echoing(t), &model.Policy{
		Name: "get", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionAllow,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &model.HTTPMatch{Methods: []model.StringMatch{{Value: "GET"}}}}}}}}},
	})
	c := s.arrived(t)
	snapshot := s.State.Snapshot()
	if d, checked := c.Review(snapshot, time.Now()); checked {
		t.Errorf("before anything is known: %v", d)
	}
	if c.settle(snapshot, nil) {
		t.Error("nothing is decided on anew after a review")
	}
	if d, _ := s.coverage(c); !d.Allowed || c.requests == nil {
		t.Errorf("decided: %v, requests %v", d, c.requests)
	}
	if d, checked := c.Review(snapshot, time.Now()); !checked || !d.Allowed {
		t.Errorf("afterwards: checked %v, %v", checked, d)
	}
}
