package policy

import (
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// NextEdge is the first moment after the given one at which a time window of
// some policy opens or closes, when live connections are to be evaluated
// again; zero if no policy has a window.
func NextEdge(s *model.Snapshot, after time.Time) time.Time {
	var next time.Time
	for _, p := range s.Policies() {
		next = edgeOf(next, p.Rules, after)
		if p.RateLimit != nil {
			for i := range p.RateLimit.Limits {
				next = edgeOf(next, p.RateLimit.Limits[i].Rules, after)
			}
		}
	}
	return next
}

func edgeOf(next time.Time, rules []model.Rule, after time.Time) time.Time {
	for _, r := range rules {
		for _, c := range r.Clauses {
			for _, m := range c.Matches {
				next = earliest(next, m.Times, after)
				next = earliest(next, m.NotTimes, after)
			}
		}
	}
	return next
}

func earliest(next time.Time, windows []model.TimeWindow, after time.Time) time.Time {
	for _, w := range windows {
		if edge := w.NextEdge(after); next.IsZero() || edge.Before(next) {
			next = edge
		}
	}
	return next
}
