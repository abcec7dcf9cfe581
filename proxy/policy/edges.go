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
		for _, r := range p.Rules {
			for _, c := range r.Clauses {
				for _, m := range c.Matches {
					next = earliest(next, m.Times, after)
					next = earliest(next, m.NotTimes, after)
				}
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
