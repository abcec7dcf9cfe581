package build

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// cover attaches a policy with a selector to its workloads, and notes those
// that it covers on paper only.
func (b *policyBuilder) cover(p *model.Policy, st *PolicyStatus, selects func(*PolicyTarget) bool) {
	var covered []*PolicyTarget
	for i := range b.workloads {
		w := &b.workloads[i]
		if !selects(w) {
			continue
		}
		covered = append(covered, w)
		if p.Scope == model.ScopeSelector {
			b.attach(w.UID, p.Key())
		}
	}
	if p.Scope == model.ScopeSelector && len(covered) == 0 {
		st.say("spec.selector: no workload has these labels")
	}
	st.sayGaps(covered, p)
}

// sayGaps names the workloads that the proxy does not see, or not on a port
// that the policy is about. A nil policy is about every port.
func (s *PolicyStatus) sayGaps(covered []*PolicyTarget, p *model.Policy) {
	var uncaptured []string
	skipped := map[string][]string{} // ports -> UIDs
	for _, w := range covered {
		if w.Uncaptured {
			uncaptured = append(uncaptured, w.UID)
			continue
		}
		if ports := aboutPorts(p, w.SkipInbound).String(); ports != "" {
			skipped[ports] = append(skipped[ports], w.UID)
		}
	}
	if len(uncaptured) > 0 {
		s.say("not enforced on workloads that are not captured: %s", someOf(uncaptured))
	}
	for _, ports := range slices.Sorted(maps.Keys(skipped)) {
		s.say("not enforced on port %s, which bypasses the mesh, of workloads: %s", ports, someOf(skipped[ports]))
	}
}

// aboutPorts are the ranges with a port on which the policy can change the
// outcome: any for ALLOW, which denies what it does not match.
func aboutPorts(p *model.Policy, skipped model.PortSet) model.PortSet {
	if p == nil || p.Action == model.ActionAllow || p.Unknown != "" {
		return skipped
	}
	var out model.PortSet
	for _, r := range skipped {
		if slices.ContainsFunc(p.Rules, func(rule model.Rule) bool { return ruleReaches(rule, r) }) {
			out = append(out, r)
		}
	}
	return out
}

func ruleReaches(rule model.Rule, ports model.PortRange) bool {
	for _, c := range rule.Clauses {
		if len(c.Matches) > 0 && !slices.ContainsFunc(c.Matches, func(m model.Match) bool { return matchReaches(m, ports) }) {
			return false
		}
	}
	return true
}

func matchReaches(m model.Match, ports model.PortRange) bool {
	if len(m.DestinationPorts) == 0 || m.Unknown != "" {
		return true
	}
	return slices.ContainsFunc(m.DestinationPorts, model.PortSet{ports}.Contains)
}

// someOf lists a few names and counts the others.
func someOf(names []string) string {
	const most = 5
	slices.Sort(names)
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
}
