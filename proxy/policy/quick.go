package policy

import (
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// ruleMatches is whether rule(r) matches, without an account of why: most
// rules do not match, and of those nobody asks.
func (e *evaluation) ruleMatches(r *model.Rule, given ruleAttributes, deny bool) bool {
	if r.Unknown != "" {
		return deny
	}
	for i := range r.Clauses {
		if !e.clauseMatches(&r.Clauses[i], given[i], deny) {
			return false
		}
	}
	return true
}

func (e *evaluation) clauseMatches(c *model.Clause, given clauseAttributes, deny bool) bool {
	if c.Unknown != "" {
		return deny
	}
	for i := range c.Matches {
		if e.matchMatches(&c.Matches[i], given[i], deny) {
			return true
		}
	}
	return len(c.Matches) == 0
}

func (e *evaluation) matchMatches(m *model.Match, given []attribute, deny bool) bool {
	if m.Unknown != "" {
		return deny
	}
	for _, a := range given {
		if v := e.judge(m, a, deny); v == fails || v == unproven && !deny {
			return false
		}
	}
	return len(given) > 0
}

// The attributes that matches have, which are few of all there are: by clause
// and match of a rule.
type (
	ruleAttributes   []clauseAttributes
	clauseAttributes [][]attribute
)

// given are the attributes of a rule.
func given(r *model.Rule) ruleAttributes {
	var out ruleAttributes
	for _, c := range r.Clauses {
		var clause clauseAttributes
		for i := range c.Matches {
			clause = append(clause, matchAttributes(&c.Matches[i]))
		}
		out = append(out, clause)
	}
	return out
}

// matchAttributes asks about a request without any facts: what a match has not
// is absent whatever the request.
func matchAttributes(m *model.Match) []attribute {
	nothing := evaluation{request: &Request{}}
	last := lastLayer4
	if m.HTTP != nil {
		last = lastAttribute
	}
	var out []attribute
	for a := firstAttribute; a <= last; a++ {
		if nothing.judge(m, a, true) != absent {
			out = append(out, a)
		}
	}
	return slices.Clip(out)
}
