package model

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/benbjohnson/immutable"
)

// Snapshot is the whole mesh at one moment. It never changes: [Snapshot.Apply]
// makes a new one that shares what stayed the same, so an update costs what
// changed and not what exists.
type Snapshot struct {
	generation     uint64
	addressesReady bool
	policiesReady  bool
	heard          *immutable.Map[string, struct{}] // names on demand; nil: everything is there

	workloads *immutable.Map[string, *Workload]    // by UID
	byAddress *immutable.Map[addressKey, []string] // workload UIDs, the newest claim last
	byName    *immutable.Map[string, []string]     // UIDs of workloads with a hostname, by "NAMESPACE/HOSTNAME"
	services  *immutable.Map[string, *Service]     // by key
	hostnames *immutable.Map[string, []string]     // service keys, sorted
	vips      *immutable.Map[addressKey, []string]
	cidrs     map[NetworkAddress][]string                              // VIPs that are no single address; few
	endpoints *immutable.Map[string, *immutable.Map[string, Endpoint]] // service key -> UID

	policies    map[string]*Policy // few and rarely changed: copied whole
	policyKeys  map[*Policy]string
	global      []*Policy
	byNamespace map[string][]*Policy
	removed     map[string]struct{} // keys of policies that existed and were removed
	memo        *sync.Map           // of this very set of policies
	before      *sync.Map           // of the last other set that anything was derived from
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
		byAddress: newMap[addressKey, []string](),
		byName:    newMap[string, []string](),
		services:  newMap[string, *Service](),
		hostnames: newMap[string, []string](),
		vips:      newMap[addressKey, []string](),
		endpoints: newMap[string, *immutable.Map[string, Endpoint]](),
		memo:      &sync.Map{},
		before:    &sync.Map{},
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
	// OnDemand says that addresses come one by one, as they are asked for.
	// Heard are names, as of [AddressName], of which the control plane has
	// said what they stand for, or that it is nothing; Unheard are names of
	// which that is no longer known.
	OnDemand bool
	Heard    []string
	Unheard  []string
}

// Apply returns the snapshot that the update leads to, one generation later.
func (s *Snapshot) Apply(u Update) *Snapshot {
	n := *s
	n.generation++
	n.addressesReady = s.addressesReady || u.AddressesComplete
	n.policiesReady = s.policiesReady || u.PoliciesComplete
	n.applyNames(u)
	for _, key := range u.RemovedAddresses {
		if w, ok := n.workloads.Get(key); ok {
			n.dropWorkload(w)
		} else {
			n.dropService(key)
		}
	}
	for _, v := range u.Services {
		n.dropService(v.Key())
		n.addService(v)
	}
	for _, w := range u.Workloads {
		n.putWorkload(w)
	}
	if len(u.Policies) > 0 || len(u.RemovedPolicies) > 0 {
		n.applyPolicies(u)
	}
	return &n
}

// putWorkload leaves the claims to addresses that the workload had already in
// their order: a pod that ends must not win its address back from the next
// holder by one more change of its status.
func (s *Snapshot) putWorkload(w *Workload) {
	if old, ok := s.workloads.Get(w.UID); ok {
		s.leaveServices(old)
		s.unname(old)
		for _, a := range old.Addresses {
			if w.HostNetwork || w.Network != old.Network || !w.HasAddress(a) {
				s.release(addressKey{old.Network, a}, w.UID)
			}
		}
	}
	s.workloads = s.workloads.Set(w.UID, w)
	if w.Hostname != "" {
		s.byName = s.byName.Set(w.hostKey(), with(get(s.byName, w.hostKey()), w.UID))
	}
	if !w.HostNetwork {
		for _, a := range w.Addresses {
			s.claim(addressKey{w.Network, a}, w.UID)
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

func (s *Snapshot) dropWorkload(w *Workload) {
	s.workloads = s.workloads.Delete(w.UID)
	for _, a := range w.Addresses {
		s.release(addressKey{w.Network, a}, w.UID)
	}
	s.leaveServices(w)
	s.unname(w)
}

func (s *Snapshot) unname(w *Workload) {
	if w.Hostname != "" {
		s.byName = setOrDelete(s.byName, w.hostKey(), without(get(s.byName, w.hostKey()), w.UID))
	}
}

func (s *Snapshot) claim(key addressKey, uid string) {
	if claims := get(s.byAddress, key); !slices.Contains(claims, uid) {
		s.byAddress = s.byAddress.Set(key, append(slices.Clip(claims), uid))
	}
}

func (s *Snapshot) release(key addressKey, uid string) {
	if claims := get(s.byAddress, key); slices.Contains(claims, uid) {
		s.byAddress = setOrDelete(s.byAddress, key, without(claims, uid))
	}
}

func (s *Snapshot) leaveServices(w *Workload) {
	for key := range w.Services {
		members, _ := s.endpoints.Get(key)
		if members = members.Delete(w.UID); members.Len() > 0 {
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
	if len(removed) > maxRemoved {
		s.forget(removed)
	}
	for range s.memo.Range {
		s.before = s.memo // unless it is empty
		break
	}
	s.policies, s.removed, s.memo = policies, removed, &sync.Map{}
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

// maxRemoved is how many removed policies are remembered without a reason.
const maxRemoved = 1024

// forget keeps the removed policies that some workload still names. Whoever
// names another one later is denied, as with any policy never seen.
func (s *Snapshot) forget(removed map[string]struct{}) {
	named := map[string]struct{}{}
	for it := s.workloads.Iterator(); !it.Done(); {
		_, w, _ := it.Next()
		for _, key := range w.Policies {
			named[key] = struct{}{}
		}
	}
	maps.DeleteFunc(removed, func(key string, _ struct{}) bool {
		_, ok := named[key]
		return !ok
	})
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
