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
		st.say(NobodySelected)
	}
	st.Ports = layersOfPorts(covered, p)
	st.sayGaps(covered, p)
}

// NobodySelected is the message of a policy that covers no workload there is.
const NobodySelected = "no workload is selected"

// The layers at which a policy is enforced.
const (
	layer4   = "L4"
	layer7   = "L7"
	anyLayer = "L4-L7"
)

// layer is the highest one that the policy needs.
func layer(p *model.Policy) string {
	if p.Action > model.ActionDeny && p.Action != model.ActionAudit || slices.ContainsFunc(p.Rules, ruleReads) {
		return layer7
	}
	return layer4
}

func ruleReads(r model.Rule) bool {
	return slices.ContainsFunc(r.Clauses, func(c model.Clause) bool {
		return slices.ContainsFunc(c.Matches, func(m model.Match) bool { return m.HTTP != nil })
	})
}

// layersOfPorts says at which layer the policy is enforced on ports that it
// covers. Requests are read where they may be of HTTP.
func layersOfPorts(covered []*PolicyTarget, p *model.Policy) []string {
	layers := map[uint16]string{}
	for _, w := range covered {
		for port, protocol := range w.Ports {
			if len(p.Ports) > 0 && !slices.Contains(p.Ports, port) || p.Action == model.ActionDeny && aboutPorts(p, model.PortSet{{First: port, Last: port}}) == nil {
				continue
			}
			at := layer4
			if protocol != model.AppTCP && protocol != model.AppTLS && layer(p) == layer7 {
				at = layer7
			}
			if before := layers[port]; before != "" && before != at {
				at = anyLayer
			}
			layers[port] = at
		}
	}
	var out []string
	for _, port := range slices.Sorted(maps.Keys(layers)) {
		out = append(out, fmt.Sprintf("%d/%s", port, layers[port]))
	}
	return out
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
