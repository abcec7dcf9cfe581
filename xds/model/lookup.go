package model

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Generation counts the updates that led here.
func (s *Snapshot) Generation() uint64 { return s.generation }

// AddressesReady reports whether the first full list of workloads and
// services is in.
func (s *Snapshot) AddressesReady() bool { return s.addressesReady }

// PoliciesReady reports whether the first full list of policies is in. Until
// then nothing may be allowed.
func (s *Snapshot) PoliciesReady() bool { return s.policiesReady }

// Workload finds a workload by its UID; nil if there is none.
func (s *Snapshot) Workload(uid string) *Workload { return s.workloads.get(uid) }

// WorkloadAt finds a workload by one of its addresses, of several with the
// same address the one that came to it last; nil if there is none.
func (s *Snapshot) WorkloadAt(network string, addr netip.Addr) *Workload {
	claims := s.byAddress.get(addressKey{network, addr})
	if len(claims) == 0 {
		return nil
	}
	return s.Workload(claims[len(claims)-1])
}

// WorkloadNamed finds a workload by "NAMESPACE/HOSTNAME", of several the first
// by UID; nil if there is none.
func (s *Snapshot) WorkloadNamed(key string) *Workload {
	uids := s.byName.get(key)
	if len(uids) == 0 {
		return nil
	}
	return s.Workload(uids[0])
}

// Service finds a service by its key, "NAMESPACE/HOSTNAME"; nil if there is none.
func (s *Snapshot) Service(key string) *Service { return s.services.get(key) }

// ServicesAt lists the services with this virtual address, by key; those of
// the longest matching prefix where no service has the very address.
func (s *Snapshot) ServicesAt(network string, addr netip.Addr) []*Service {
	keys := s.vips.get(addressKey{network, addr})
	if keys == nil {
		best := -1
		for a, candidates := range s.cidrs {
			if a.Network == network && a.Prefix.Bits() > best && a.Prefix.Contains(addr) {
				best, keys = a.Prefix.Bits(), candidates
			}
		}
	}
	return s.servicesOf(keys)
}

// ServicesNamed lists the services with this hostname, by key.
func (s *Snapshot) ServicesNamed(hostname string) []*Service {
	return s.servicesOf(s.hostnames.get(hostname))
}

func (s *Snapshot) servicesOf(keys []string) []*Service {
	if len(keys) == 0 {
		return nil
	}
	out := make([]*Service, 0, len(keys))
	for _, key := range keys {
		out = append(out, s.services.get(key))
	}
	return out
}

// Endpoints lists the members of a service, in no particular but for one
// snapshot fixed order.
func (s *Snapshot) Endpoints(serviceKey string) iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		members, ok := s.endpoints.find(serviceKey)
		if !ok {
			return
		}
		for _, e := range members.all() {
			if !yield(e) {
				return
			}
		}
	}
}

// Policy finds a policy by its key. A nil policy with removed set is one that
// the control plane took away; a nil policy without has never been seen.
func (s *Snapshot) Policy(key string) (p *Policy, removed bool) {
	if p = s.policies[key]; p != nil {
		return p, false
	}
	_, removed = s.removed[key]
	return nil, removed
}

// PolicyKey is p.Key() for a policy of the snapshot, without building it.
func (s *Snapshot) PolicyKey(p *Policy) string { return s.policyKeys[p] }

// Memo remembers what evaluation derives from policies. Every snapshot with the
// same policies has the same; a change of policies begins a new one.
func (s *Snapshot) Memo() *sync.Map { return s.memo }

// Before is the Memo of an earlier set of policies: what of it concerns policies
// that are still the same holds.
func (s *Snapshot) Before() *sync.Map { return s.before }

// GlobalPolicies are those of the whole mesh, by key.
func (s *Snapshot) GlobalPolicies() []*Policy { return s.global }

// NamespacePolicies are those of a whole namespace, by key.
func (s *Snapshot) NamespacePolicies(namespace string) []*Policy { return s.byNamespace[namespace] }

// IsGateway reports whether a workload is the gateway, or a member of it.
func (s *Snapshot) IsGateway(g Gateway, w *Workload) bool {
	if w == nil {
		return false
	}
	if g.Service != "" {
		if _, member := w.Services[g.Service]; member {
			return true
		}
		return s.Service(g.Service) == nil && s.WorkloadNamed(g.Service) == w
	}
	if w.Network == g.Network && g.Address.IsValid() && w.HasAddress(g.Address) {
		return true
	}
	return slices.ContainsFunc(s.ServicesAt(g.Network, g.Address), func(v *Service) bool {
		_, member := w.Services[v.Key()]
		return member
	})
}

// Workloads lists every workload, sorted by UID: for dumps and tests.
func (s *Snapshot) Workloads() []*Workload {
	out := make([]*Workload, 0, s.workloads.len())
	for _, w := range s.workloads.all() {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// Services lists every service, sorted by key: for dumps and tests.
func (s *Snapshot) Services() []*Service {
	out := make([]*Service, 0, s.services.len())
	for _, v := range s.services.all() {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *Service) int { return strings.Compare(a.Key(), b.Key()) })
	return out
}

// Policies lists every policy, sorted by key.
func (s *Snapshot) Policies() []*Policy {
	out := make([]*Policy, 0, len(s.policies))
	for _, key := range slices.Sorted(maps.Keys(s.policies)) {
		out = append(out, s.policies[key])
	}
	return out
}

// RemovedPolicies lists the keys of policies that the control plane took
// away, sorted.
func (s *Snapshot) RemovedPolicies() []string { return slices.Sorted(maps.Keys(s.removed)) }
