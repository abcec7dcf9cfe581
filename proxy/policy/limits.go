package policy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// AppliedLimit is one limit that a request or connection counts against. Its
// counts are those of everything with the same Policy, Index and Key.
type AppliedLimit struct {
	Policy string // its key
	Index  int    // of the limit in the policy
	DryRun bool   // decides nothing, as under a Bypass
	Limit  *model.Limit
	Key    string // the value that the counts are kept apart by
	Store  *model.LimitStore
}

// Limits appends the limits with this unit that hold for the request, or, if
// it has no HTTP, for the connection. A limit of which it is not known whether
// it holds does.
func Limits(to []AppliedLimit, s *model.Snapshot, r *Request, unit model.LimitUnit) []AppliedLimit {
	e := newEvaluation(s, r)
	if e.workload == nil {
		return to
	}
	for _, c := range covers(s, e.workload) {
		for _, p := range c.limits {
			if coversPort(p, r.Destination.Port()) {
				to = e.limits(to, s, p, unit)
			}
		}
	}
	return to
}

func (e *evaluation) limits(to []AppliedLimit, s *model.Snapshot, p *model.Policy, unit model.LimitUnit) []AppliedLimit {
	for i := range p.RateLimit.Limits {
		l := &p.RateLimit.Limits[i]
		if l.Unit != unit || !e.limited(l) {
			continue
		}
		a := AppliedLimit{
			Policy: s.PolicyKey(p), Index: i, DryRun: p.DryRun || e.bypass() != "", Limit: l, Key: e.limitKey(l), Store: p.RateLimit.Store,
		}
		if l.PerWorkload {
			a.Key = e.workload.UID + " " + a.Key
		}
		to = append(to, a)
	}
	return to
}

// limited takes what is not known for a match, as a DENY policy does.
func (e *evaluation) limited(l *model.Limit) bool {
	for i := range l.Rules {
		if e.rule(&l.Rules[i], true).matched {
			return true
		}
	}
	return len(l.Rules) == 0
}

func (e *evaluation) limitKey(l *model.Limit) string {
	switch h := e.request.HTTP; {
	case l.Per == model.LimitPerIdentity:
		return e.request.Identity.Principal()
	case l.Per == model.LimitPerHeader && h != nil:
		var lines []string
		for i := range h.Headers {
			if model.EqualFold(h.Headers[i].Name, l.Key) {
				lines = append(lines, h.Headers[i].Value)
			}
		}
		return strings.Join(lines, ",")
	case l.Per == model.LimitPerClaim && h != nil:
		return claimText(h.Claims.Find(strings.Split(l.Key, ".")...))
	}
	return ""
}

func claimText(claim any) string {
	switch v := claim.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number, bool, float64:
		return fmt.Sprint(v)
	}
	text, err := json.Marshal(claim)
	if err != nil {
		return ""
	}
	return string(text)
}
