package check

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// rule is a direction of a NetworkPolicy, made alike for both.
type rule struct {
	ports []networking.NetworkPolicyPort
	peers []networking.NetworkPolicyPeer
}

// networkPolicies looks for rules that let a port in or out by number. Between
// pods of the mesh all of that arrives at the one port of HBONE.
func (s *state) networkPolicies(ctx context.Context) {
	all, err := s.c.Client.NetworkingV1().NetworkPolicies("").List(ctx, meta.ListOptions{})
	if err != nil {
		s.unknown("NetworkPolicy", "all", err)
		return
	}
	before := len(s.findings)
	for _, p := range all.Items {
		affected := s.optedInBy(p)
		if len(affected) == 0 {
			continue
		}
		name := p.Namespace + "/" + p.Name
		what := fmt.Sprintf("%d pods in the mesh, such as %s", len(affected), affected[0])
		if blocks(rulesOf(all.Items, p, networking.PolicyTypeIngress)) {
			s.add(Broken, "NetworkPolicy", name, fmt.Sprintf("drops what others in the mesh send to %s: it lets in ports, but not TCP %d", what, protocol.HBONEPort),
				fmt.Sprintf("add port %d (TCP) to the rules under ingress that name ports", protocol.HBONEPort))
		}
		if blocks(rulesOf(all.Items, p, networking.PolicyTypeEgress)) {
			s.add(Broken, "NetworkPolicy", name, fmt.Sprintf("drops what %s send to others in the mesh: it lets out ports, but not TCP %d", what, protocol.HBONEPort),
				fmt.Sprintf("add port %d (TCP) to the rules under egress that name ports", protocol.HBONEPort))
		}
	}
	s.fine(before, "NetworkPolicy", fmt.Sprintf("none drops TCP %d between pods of the mesh", protocol.HBONEPort))
}

// optedInBy names the pods in the mesh that a policy selects.
func (s *state) optedInBy(p networking.NetworkPolicy) []string {
	ns := s.namespaces[p.Namespace]
	selector, err := meta.LabelSelectorAsSelector(&p.Spec.PodSelector)
	if err != nil || ns == nil {
		return nil
	}
	var names []string
	for _, pod := range s.pods {
		if pod.Namespace == p.Namespace && optedIn(pod, ns) && selector.Matches(labels.Set(pod.Labels)) {
			names = append(names, pod.Name)
		}
	}
	slices.Sort(names)
	return names
}

// rulesOf are those of one policy in a direction, and those of others that
// select every pod which it selects: what they let through passes as well.
func rulesOf(all []networking.NetworkPolicy, p networking.NetworkPolicy, direction networking.PolicyType) (own, others []rule) {
	for _, other := range all {
		if other.Namespace != p.Namespace || !slices.Contains(other.Spec.PolicyTypes, direction) {
			continue
		}
		var rules []rule
		if direction == networking.PolicyTypeIngress {
			for _, r := range other.Spec.Ingress {
				rules = append(rules, rule{r.Ports, r.From})
			}
		} else {
			for _, r := range other.Spec.Egress {
				rules = append(rules, rule{r.Ports, r.To})
			}
		}
		everyPod := len(other.Spec.PodSelector.MatchLabels)+len(other.Spec.PodSelector.MatchExpressions) == 0
		switch {
		case other.Name == p.Name:
			own = rules
		case everyPod || reflect.DeepEqual(other.Spec.PodSelector, p.Spec.PodSelector):
			others = append(others, rules...)
		}
	}
	return own, others
}

// blocks reports whether some peers may use a port of TCP and not that of
// HBONE. A policy without rules means to drop everything.
func blocks(own, others []rule) bool {
	passes := func(peers []networking.NetworkPolicyPeer) bool {
		return slices.ContainsFunc(slices.Concat(own, others), func(r rule) bool {
			return r.lets(protocol.HBONEPort) && (len(r.peers) == 0 || reflect.DeepEqual(r.peers, peers))
		})
	}
	return slices.ContainsFunc(own, func(r rule) bool { return r.letsTCP() && !passes(r.peers) })
}

// lets reports whether a port of TCP is among the rule's.
func (r rule) lets(port int32) bool {
	return len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p networking.NetworkPolicyPort) bool {
		switch {
		case !isTCP(p):
			return false
		case p.Port == nil:
			return true
		case p.EndPort != nil:
			return p.Port.IntVal <= port && port <= *p.EndPort
		}
		return p.Port.IntVal == port
	})
}

// letsTCP reports whether the rule is about TCP at all, not about DNS alone.
func (r rule) letsTCP() bool {
	return slices.ContainsFunc(r.ports, func(p networking.NetworkPolicyPort) bool {
		return isTCP(p) && (p.Port == nil || p.Port.IntVal != 53)
	})
}

func isTCP(p networking.NetworkPolicyPort) bool {
	return p.Protocol == nil || *p.Protocol == core.ProtocolTCP
}
