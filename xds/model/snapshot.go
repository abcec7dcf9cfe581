package model

import (
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/benbjohnson/immutable"
)

// Snapshot is the whole mesh at one moment. It never changes: [Snapshot.Apply]
// makes a new one that shares what stayed the same, so an update costs what
// changed and not what exists.
type Snapshot struct {
	generation     uint64
	addressesReady bool
	policiesReady  bool

	workloads *immutable.Map[string, *Workload]  // by UID
	byAddress *immutable.Map[addressKey, string] // workload UID, newest claim wins
	services  *immutable.Map[string, *Service]   // by key
	hostnames *immutable.Map[string, []string]   // service keys, sorted
	vips      *immutable.Map[addressKey, []string]
	cidrs     map[NetworkAddress][]string                              // VIPs that are no single address; few
	endpoints *immutable.Map[string, *immutable.Map[string, Endpoint]] // service key -> UID

	policies    map[string]*Policy // few and rarely changed: copied whole
	policyKeys  map[*Policy]string
	global      []*Policy
	byNamespace map[string][]*Policy
	removed     map[string]struct{} // keys of policies that existed and were removed
}

type addressKey struct {
	network string
	addr    netip.Addr
}

type hasher[K comparable] struct{ seed maphash.Seed }

func (h hasher[K]) Hash(k K) uint32   { return uint32(maphash.Comparable(h.seed, k)) }
func (h hasher[K]) Equal(a, b K) bool { return a == b }

func newMap[K comparable, V any]() *immutable.Map[K, V] {
	return immutable.NewMap[K, V](hasher[K]{maphash.MakeSeed()})
}

// NewSnapshot is the empty mesh, in which nothing is ready.
func NewSnapshot() *Snapshot {
	return &Snapshot{
		workloads: newMap[string, *Workload](),
		byAddress: newMap[addressKey, string](),
		services:  newMap[string, *Service](),
		hostnames: newMap[string, []string](),
		vips:      newMap[addressKey, []string](),
		endpoints: newMap[string, *immutable.Map[string, Endpoint]](),
	}
}

// Update is one xDS response, or one rebuild: applied whole or not at all.
// Removals are applied before additions.
type Update struct {
	Workloads []*Workload
	Services  []*Service
	Policies  []*Policy
	// RemovedAddresses are workload UIDs or service keys.
	RemovedAddresses []string
	RemovedPolicies  []string
	// AddressesComplete and PoliciesComplete say that with this update the
	// first full list of that kind is in.
	AddressesComplete bool
	PoliciesComplete  bool
}

// Apply returns the snapshot that the update leads to, one generation later.
func (s *Snapshot) Apply(u Update) *Snapshot {
	n := *s
	n.generation++
	n.addressesReady = s.addressesReady || u.AddressesComplete
	n.policiesReady = s.policiesReady || u.PoliciesComplete
	for _, key := range u.RemovedAddresses {
		if _, ok := n.workloads.Get(key); ok {
			n.dropWorkload(key)
		} else {
			n.dropService(key)
		}
	}
	for _, v := range u.Services {
		n.dropService(v.Key())
		n.addService(v)
	}
	for _, w := range u.Workloads {
		n.dropWorkload(w.UID)
		n.addWorkload(w)
	}
	if len(u.Policies) > 0 || len(u.RemovedPolicies) > 0 {
		n.applyPolicies(u)
	}
	return &n
}

func (s *Snapshot) addWorkload(w *Workload) {
	s.workloads = s.workloads.Set(w.UID, w)
	if !w.HostNetwork {
		for _, a := range w.Addresses {
			s.byAddress = s.byAddress.Set(addressKey{w.Network, a}, w.UID)
		}
	}
	for key, ports := range w.Services {
		members, ok := s.endpoints.Get(key)
		if !ok {
			members = newMap[string, Endpoint]()
		}
		s.endpoints = s.endpoints.Set(key, members.Set(w.UID, Endpoint{Workload: w, Ports: ports}))
	}
}

func (s *Snapshot) dropWorkload(uid string) {
	w, ok := s.workloads.Get(uid)
	if !ok {
		return
	}
	s.workloads = s.workloads.Delete(uid)
	for _, a := range w.Addresses {
		key := addressKey{w.Network, a}
		if owner, _ := s.byAddress.Get(key); owner == uid {
			s.byAddress = s.byAddress.Delete(key)
		}
	}
	for key := range w.Services {
		members, _ := s.endpoints.Get(key)
		if members = members.Delete(uid); members.Len() > 0 {
			s.endpoints = s.endpoints.Set(key, members)
		} else {
			s.endpoints = s.endpoints.Delete(key)
		}
	}
}

func (s *Snapshot) addService(v *Service) {
	key := v.Key()
	s.services = s.services.Set(key, v)
	s.hostnames = s.hostnames.Set(v.Hostname, with(get(s.hostnames, v.Hostname), key))
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			k := addressKey{a.Network, a.Prefix.Addr()}
			s.vips = s.vips.Set(k, with(get(s.vips, k), key))
			continue
		}
		s.cidrs = maps.Clone(s.cidrs)
		if s.cidrs == nil {
			s.cidrs = map[NetworkAddress][]string{}
		}
		s.cidrs[a] = with(s.cidrs[a], key)
	}
}

func (s *Snapshot) dropService(key string) {
	v, ok := s.services.Get(key)
	if !ok {
		return
	}
	s.services = s.services.Delete(key)
	s.hostnames = setOrDelete(s.hostnames, v.Hostname, without(get(s.hostnames, v.Hostname), key))
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			k := addressKey{a.Network, a.Prefix.Addr()}
			s.vips = setOrDelete(s.vips, k, without(get(s.vips, k), key))
			continue
		}
		s.cidrs = maps.Clone(s.cidrs)
		if s.cidrs[a] = without(s.cidrs[a], key); len(s.cidrs[a]) == 0 {
			delete(s.cidrs, a)
		}
	}
}

func (s *Snapshot) applyPolicies(u Update) {
	policies, removed := maps.Clone(s.policies), maps.Clone(s.removed)
	if policies == nil {
		policies, removed = map[string]*Policy{}, map[string]struct{}{}
	}
	for _, key := range u.RemovedPolicies {
		delete(policies, key)
		removed[key] = struct{}{}
	}
	for _, p := range u.Policies {
		policies[p.Key()] = p
		delete(removed, p.Key())
	}
	s.policies, s.removed = policies, removed
	s.policyKeys = make(map[*Policy]string, len(policies))
	s.global, s.byNamespace = nil, map[string][]*Policy{}
	for _, key := range slices.Sorted(maps.Keys(policies)) {
		p := policies[key]
		s.policyKeys[p] = key
		switch p.Scope {
		case ScopeSelector: // found by name
		case ScopeNamespace:
			s.byNamespace[p.Namespace] = append(s.byNamespace[p.Namespace], p)
		case ScopeGlobal:
			s.global = append(s.global, p)
		default: // a scope of a later version: rather too wide than too narrow
			s.global = append(s.global, p)
		}
	}
}

func get[K comparable, V any](m *immutable.Map[K, V], k K) V {
	v, _ := m.Get(k)
	return v
}

func setOrDelete[K comparable](m *immutable.Map[K, []string], k K, v []string) *immutable.Map[K, []string] {
	if len(v) == 0 {
		return m.Delete(k)
	}
	return m.Set(k, v)
}

// with and without copy: the old list belongs to older snapshots.
func with(list []string, key string) []string {
	i, found := slices.BinarySearch(list, key)
	if found {
		return list
	}
	return slices.Insert(slices.Clone(list), i, key)
}

func without(list []string, key string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(k string) bool { return k == key })
}

// Generation counts the updates that led here.
func (s *Snapshot) Generation() uint64 { return s.generation }

// AddressesReady reports whether the first full list of workloads and
// services is in.
func (s *Snapshot) AddressesReady() bool { return s.addressesReady }

// PoliciesReady reports whether the first full list of policies is in. Until
// then nothing may be allowed.
func (s *Snapshot) PoliciesReady() bool { return s.policiesReady }

// Workload finds a workload by its UID; nil if there is none.
func (s *Snapshot) Workload(uid string) *Workload { return get(s.workloads, uid) }

// WorkloadAt finds a workload by one of its addresses; nil if there is none.
func (s *Snapshot) WorkloadAt(network string, addr netip.Addr) *Workload {
	uid, ok := s.byAddress.Get(addressKey{network, addr})
	if !ok {
		return nil
	}
	return s.Workload(uid)
}

// Service finds a service by its key, "NAMESPACE/HOSTNAME"; nil if there is none.
func (s *Snapshot) Service(key string) *Service { return get(s.services, key) }

// ServicesAt lists the services with this virtual address, by key; those of
// the longest matching prefix where no service has the very address.
func (s *Snapshot) ServicesAt(network string, addr netip.Addr) []*Service {
	keys := get(s.vips, addressKey{network, addr})
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
	return s.servicesOf(get(s.hostnames, hostname))
}

func (s *Snapshot) servicesOf(keys []string) []*Service {
	if len(keys) == 0 {
		return nil
	}
	out := make([]*Service, 0, len(keys))
	for _, key := range keys {
		out = append(out, get(s.services, key))
	}
	return out
}

// Endpoints lists the members of a service, in no particular but for one
// snapshot fixed order.
func (s *Snapshot) Endpoints(serviceKey string) iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		members, ok := s.endpoints.Get(serviceKey)
		if !ok {
			return
		}
		for it := members.Iterator(); !it.Done(); {
			if _, e, _ := it.Next(); !yield(e) {
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

// GlobalPolicies are those of the whole mesh, by key.
func (s *Snapshot) GlobalPolicies() []*Policy { return s.global }

// NamespacePolicies are those of a whole namespace, by key.
func (s *Snapshot) NamespacePolicies(namespace string) []*Policy { return s.byNamespace[namespace] }

// Workloads lists every workload, sorted by UID: for dumps and tests.
func (s *Snapshot) Workloads() []*Workload {
	out := make([]*Workload, 0, s.workloads.Len())
	for it := s.workloads.Iterator(); !it.Done(); {
		_, w, _ := it.Next()
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// Services lists every service, sorted by key: for dumps and tests.
func (s *Snapshot) Services() []*Service {
	out := make([]*Service, 0, s.services.Len())
	for it := s.services.Iterator(); !it.Done(); {
		_, v, _ := it.Next()
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
