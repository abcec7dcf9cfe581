package policy

import (
	"math/bits"
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// index finds, among the rules of many policies, the few that may match a
// request. What it finds is a superset and still to be judged: of an attribute
// of which nothing is known, for instance, it finds every rule.
type index struct {
	rules  []indexedRule // in the order in which they are evaluated
	match  filing        // finds the rules that may match
	near   filing        // finds the rules of ALLOW policies of which anything may fit
	allows []*model.Policy
	labels bool // some rule is about the labels of who comes
}

// indexedRule is one rule, or a policy that was not understood, without a rule.
type indexedRule struct {
	policy *model.Policy
	rule   *model.Rule
	number int // of the rule in its policy
	given  ruleAttributes
	allow  bool
}

func newIndex(policies []*model.Policy) index {
	var x index
	for _, p := range policies {
		allow := p.Action == model.ActionAllow
		if allow {
			x.allows = append(x.allows, p)
		}
		switch {
		case !understood(p):
			if !allow {
				x.rules = append(x.rules, indexedRule{policy: p})
			}
		case p.Action <= model.ActionCustom:
			for i := range p.Rules {
				r := &p.Rules[i]
				x.rules = append(x.rules, indexedRule{policy: p, rule: r, number: i, given: given(r), allow: allow})
			}
		}
	}
	for _, r := range x.rules {
		x.labels = x.labels || r.rule != nil && readsLabels(r.rule)
	}
	common := x.count()
	for n := range x.rules {
		r := &x.rules[n]
		if r.rule == nil {
			x.match.always = append(x.match.always, uint32(n))
			continue
		}
		found, ok := chosen(r, common)
		x.match.file(uint32(n), found, ok)
		if r.allow {
			found, ok = beginning(r)
			x.near.file(uint32(n), found, ok)
		}
	}
	return x
}

func readsLabels(r *model.Rule) bool {
	return slices.ContainsFunc(r.Clauses, func(c model.Clause) bool {
		return slices.ContainsFunc(c.Matches, func(m model.Match) bool { return len(m.SourceLabels)+len(m.NotSourceLabels) > 0 })
	})
}

// understood: what is not known of a policy makes all of it match, or not.
func understood(p *model.Policy) bool {
	return p.Unknown == "" && p.Action <= model.ActionLimit
}

// count says of how many rules each value is.
func (x *index) count() map[key]int {
	common := map[key]int{}
	for n := range x.rules {
		r := x.rules[n].rule
		if r == nil {
			continue
		}
		for i := range r.Clauses {
			for j := range r.Clauses[i].Matches {
				for _, a := range filed {
					for _, k := range keys(&r.Clauses[i].Matches[j], a) {
						common[k]++
					}
				}
			}
		}
	}
	for k := range common {
		if k.text == "" && k.kind == model.MatchPrefix {
			common[k] = len(x.rules) // anything begins with it
		}
	}
	return common
}

// chosen are the values under which the rule is filed: a clause that must
// match, and of each of its matches one attribute that must fit, those with
// the rarest values. It is false if there is no such clause.
func chosen(r *indexedRule, common map[key]int) (best []key, ok bool) {
	if r.rule.Unknown != "" {
		return nil, r.allow // such a rule of an ALLOW policy never matches
	}
	least := 0
	for i := range r.rule.Clauses {
		found, cost, must := clauseKeys(&r.rule.Clauses[i], r.given[i], common, r.allow)
		if must && (!ok || cost < least) {
			best, least, ok = found, cost, true
		}
	}
	return best, ok
}

func clauseKeys(c *model.Clause, given clauseAttributes, common map[key]int, allow bool) (all []key, cost int, ok bool) {
	if c.Unknown != "" || len(c.Matches) == 0 {
		return nil, 0, allow && c.Unknown != ""
	}
	for i := range c.Matches {
		m := &c.Matches[i]
		switch {
		case m.Unknown != "" && !allow:
			return nil, 0, false
		case m.Unknown != "" || len(given[i]) == 0:
			continue // never matches
		}
		best, least := []key(nil), -1
		for _, a := range filed {
			found := keys(m, a)
			sum := 0
			for _, k := range found {
				sum += common[k]
			}
			if len(found) > 0 && (least < 0 || sum < least) {
				best, least = found, sum
			}
		}
		if least < 0 {
			return nil, 0, false
		}
		all, cost = append(all, best...), cost+least
	}
	return all, cost, true
}

// beginning are the values of the attributes that are judged first. If none of
// them fits, nothing of the rule does.
func beginning(r *indexedRule) (all []key, ok bool) {
	if r.rule.Unknown != "" {
		return nil, true
	}
	if len(r.rule.Clauses) == 0 {
		return nil, false
	}
	c := &r.rule.Clauses[0]
	if c.Unknown != "" || len(c.Matches) == 0 {
		return nil, c.Unknown != ""
	}
	for i := range c.Matches {
		if given := r.given[0][i]; c.Matches[i].Unknown == "" && len(given) > 0 {
			found := keys(&c.Matches[i], given[0])
			if len(found) == 0 {
				return nil, false
			}
			all = append(all, found...)
		}
	}
	return all, true
}

// marks are a set of rules by their numbers.
type marks []uint64

// fewRules is for how many rules a set needs no memory of its own.
const fewRules = 1 << 14

func (m marks) add(list []uint32) {
	for _, n := range list {
		m[n/64] |= 1 << (n % 64)
	}
}

// each calls f in the order of numbers.
func (m marks) each(f func(n int)) {
	for i, word := range m {
		for ; word != 0; word &= word - 1 {
			f(i*64 + bits.TrailingZeros64(word))
		}
	}
}

// marks makes a set for the index's rules, in the empty space given if that is
// enough.
func (x *index) marks(space *[fewRules / 64]uint64) marks {
	n := (len(x.rules) + 63) / 64
	if n > len(space) {
		return make(marks, n)
	}
	return space[:n]
}
