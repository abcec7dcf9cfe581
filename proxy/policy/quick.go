package policy

import (
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// matches is whether policy(p) matches, without an account of why: most
// policies that cover a workload do not match, and of those nobody asks.
func (e *evaluation) matches(p *model.Policy) bool {
	deny := denies(p)
	switch {
	case p.Unknown != "":
		return deny
	case p.Action > model.ActionLimit:
		return true
	case p.Action > model.ActionCustom, p.Action > model.ActionDeny && e.anyRequest:
		return false
	}
	given := e.given(p)
	for i := range p.Rules {
		if e.ruleMatches(&p.Rules[i], given[i], deny) {
			return true
		}
	}
	return false
}

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

// The attributes that matches have, which are few of all there are: by rule,
// clause and match of a policy.
type (
	policyAttributes []ruleAttributes
	ruleAttributes   []clauseAttributes
	clauseAttributes [][]attribute
)

// given are the attributes of a policy. They are worked out once.
func (e *evaluation) given(p *model.Policy) policyAttributes {
	if known, ok := e.memo.Load(p); ok {
		return *known.(*policyAttributes)
	}
	out := make(policyAttributes, 0, len(p.Rules))
	for _, r := range p.Rules {
		var rule ruleAttributes
		for _, c := range r.Clauses {
			var clause clauseAttributes
			for i := range c.Matches {
				clause = append(clause, matchAttributes(&c.Matches[i]))
			}
			rule = append(rule, clause)
		}
		out = append(out, rule)
	}
	e.memo.Store(p, &out)
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
