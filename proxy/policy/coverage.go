package policy

import (
	"iter"
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// CoversHTTP reports whether what happens on this port of the workload depends
// on the requests that its connections carry: whether some policy looks into
// them, accepts their tokens, asks a provider or counts them. Only then need
// they be read.
//
// Where a service declares that the port carries something else than HTTP,
// tokens and counts are none of its business, and conditions on requests
// cannot be met.
func CoversHTTP(s *model.Snapshot, w *model.Workload, port uint16) bool {
	if w = current(s, w); w == nil {
		return false
	}
	declared := PortProtocol(s, w, port)
	for p := range covering(s, w) {
		if coversPort(p, port) && policyReads(p, port, declared) {
			return true
		}
	}
	return false
}

// current is the snapshot's version of a workload.
func current(s *model.Snapshot, w *model.Workload) *model.Workload {
	if w == nil {
		return nil
	}
	return s.Workload(w.UID)
}

// ReadsLabels reports whether a policy that covers a workload of the snapshot is
// about the labels of who comes.
func ReadsLabels(s *model.Snapshot, w *model.Workload) bool {
	return slices.ContainsFunc(covers(s, w)[:], func(c *covered) bool { return c.index.labels })
}

// PortProtocol is what some service declares that this port of the workload
// carries; AppUnknown if none does, or if services differ.
func PortProtocol(s *model.Snapshot, w *model.Workload, port uint16) model.AppProtocol {
	declared := model.AppUnknown
	for key, ports := range w.Services {
		service := s.Service(key)
		for _, p := range ports {
			if p.Target != port {
				continue
			}
			protocol := p.AppProtocol
			if protocol == model.AppUnknown && service != nil {
				protocol = servicePort(service, p.Service)
			}
			if protocol == model.AppUnknown || declared != model.AppUnknown && declared != protocol {
				return model.AppUnknown
			}
			declared = protocol
		}
	}
	return declared
}

func servicePort(v *model.Service, port uint16) model.AppProtocol {
	for _, p := range v.Ports {
		if p.Service == port {
			return p.AppProtocol
		}
	}
	return model.AppUnknown
}

func policyReads(p *model.Policy, port uint16, declared model.AppProtocol) bool {
	opaque := declared == model.AppTCP || declared == model.AppTLS
	switch p.Action {
	case model.ActionAuthenticate:
		return !opaque
	case model.ActionLimit:
		return p.RateLimit != nil && !opaque && slices.ContainsFunc(p.RateLimit.Limits, func(l model.Limit) bool {
			return l.Unit != model.LimitConnections || l.Per >= model.LimitPerClaim || rulesRead(l.Rules, port, declared)
		})
	case model.ActionCustom:
		return len(p.Rules) > 0 && slices.ContainsFunc(p.Rules, func(r model.Rule) bool { return ruleReaches(&r, port) })
	case model.ActionAllow, model.ActionDeny, model.ActionAudit:
	}
	return rulesRead(p.Rules, port, declared)
}

// rulesRead reports whether some rule has conditions on requests, and none
// that keeps it away from this port.
func rulesRead(rules []model.Rule, port uint16, declared model.AppProtocol) bool {
	return slices.ContainsFunc(rules, func(r model.Rule) bool {
		return ruleReaches(&r, port) && slices.ContainsFunc(r.Clauses, func(c model.Clause) bool {
			return slices.ContainsFunc(c.Matches, func(m model.Match) bool {
				return matchReaches(&m, port) && matchReads(&m, declared)
			})
		})
	})
}

func matchReads(m *model.Match, declared model.AppProtocol) bool {
	switch {
	case m.HTTP == nil:
		return false
	case declared == model.AppTCP, declared == model.AppTLS:
		return len(m.HTTP.ServerNames)+len(m.HTTP.NotServerNames) > 0
	}
	return true
}

func ruleReaches(r *model.Rule, port uint16) bool {
	for _, c := range r.Clauses {
		if len(c.Matches) > 0 && !slices.ContainsFunc(c.Matches, func(m model.Match) bool { return matchReaches(&m, port) }) {
			return false
		}
	}
	return true
}

func matchReaches(m *model.Match, port uint16) bool {
	return (len(m.DestinationPorts) == 0 || slices.Contains(m.DestinationPorts, port)) &&
		!slices.Contains(m.NotDestinationPorts, port)
}

// JWTRules are the rules for tokens to a port of a workload, each with the key of the
// RequestAuthentication that it is part of.
func JWTRules(s *model.Snapshot, w *model.Workload, port uint16) iter.Seq2[string, *model.JWTRule] {
	return func(yield func(string, *model.JWTRule) bool) {
		if w = current(s, w); w == nil {
			return
		}
		for _, c := range covers(s, w) {
			for _, p := range c.tokens {
				if !coversPort(p, port) {
					continue
				}
				for i := range p.Authentication.Rules {
					if !yield(s.PolicyKey(p), &p.Authentication.Rules[i]) {
						return
					}
				}
			}
		}
	}
}
