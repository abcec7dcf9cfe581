package model

import (
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

	workloads table[string, *Workload]    // by UID
	byAddress table[addressKey, []string] // workload UIDs, the newest claim last
	byName    table[string, []string]     // UIDs of workloads with a hostname, by "NAMESPACE/HOSTNAME"
	services  table[string, *Service]     // by key
	hostnames table[string, []string]     // service keys, sorted
	vips      table[addressKey, []string]
	cidrs     map[NetworkAddress][]string            // VIPs that are no single address; few
	endpoints table[string, table[string, Endpoint]] // service key -> UID

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

// NewSnapshot is the empty mesh, in which nothing is ready.
func NewSnapshot() *Snapshot {
	return &Snapshot{
		workloads: newTable[string, *Workload](),
		byAddress: newTable[addressKey, []string](),
		byName:    newTable[string, []string](),
		services:  newTable[string, *Service](),
		hostnames: newTable[string, []string](),
		vips:      newTable[addressKey, []string](),
		endpoints: newTable[string, table[string, Endpoint]](),
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
	n.applyAddresses(u)
	if len(u.Policies) > 0 || len(u.RemovedPolicies) > 0 {
		n.applyPolicies(u)
	}
	return &n
}

// An update of at least so many resources, and of this part of all, opens the
// tables.
const (
	manyResources = 256
	manyOfAll     = 4
)

func (s *Snapshot) applyAddresses(u Update) {
	if n := len(u.RemovedAddresses) + len(u.Services) + len(u.Workloads); n >= manyResources && n >= (s.workloads.len()+s.services.len())/manyOfAll {
		s.open()
		defer s.close()
	}
	for _, key := range u.RemovedAddresses {
		if w, ok := s.workloads.find(key); ok {
			s.dropWorkload(w)
		} else {
			s.dropService(key)
		}
	}
	for _, v := range u.Services {
		s.dropService(v.Key())
		s.addService(v)
	}
	for _, w := range u.Workloads {
		s.putWorkload(w)
	}
}

func (s *Snapshot) open() {
	s.workloads.open()
	s.byAddress.open()
	s.services.open()
	s.hostnames.open()
	s.vips.open()
	s.endpoints.open()
}

func (s *Snapshot) close() {
	s.workloads.close()
	s.byAddress.close()
	s.services.close()
	s.hostnames.close()
	s.vips.close()
	s.endpoints.close()
}

// putWorkload leaves the claims to addresses that the workload had already in
// their order: a pod that ends must not win its address back from the next
// holder by one more change of its status.
func (s *Snapshot) putWorkload(w *Workload) {
	if old, ok := s.workloads.find(w.UID); ok {
		s.leaveServices(old)
		s.unname(old)
		for _, a := range old.Addresses {
			if w.HostNetwork || w.Network != old.Network || !w.HasAddress(a) {
				s.release(addressKey{old.Network, a}, w.UID)
			}
		}
	}
	s.workloads.set(w.UID, w)
	if w.Hostname != "" {
		s.byName.set(w.hostKey(), with(s.byName.get(w.hostKey()), w.UID))
	}
	if !w.HostNetwork {
		for _, a := range w.Addresses {
			s.claim(addressKey{w.Network, a}, w.UID)
		}
	}
	for key, ports := range w.Services {
		members, ok := s.endpoints.find(key)
		if !ok {
			members = newTable[string, Endpoint]()
		}
		members.set(w.UID, Endpoint{Workload: w, Ports: ports})
		s.endpoints.set(key, members)
	}
}

func (s *Snapshot) dropWorkload(w *Workload) {
	s.workloads.remove(w.UID)
	for _, a := range w.Addresses {
		s.release(addressKey{w.Network, a}, w.UID)
	}
	s.leaveServices(w)
	s.unname(w)
}

func (s *Snapshot) unname(w *Workload) {
	if w.Hostname != "" {
		setOrDelete(&s.byName, w.hostKey(), without(s.byName.get(w.hostKey()), w.UID))
	}
}

func (s *Snapshot) claim(key addressKey, uid string) {
	if claims := s.byAddress.get(key); !slices.Contains(claims, uid) {
		s.byAddress.set(key, append(slices.Clip(claims), uid))
	}
}

func (s *Snapshot) release(key addressKey, uid string) {
	if claims := s.byAddress.get(key); slices.Contains(claims, uid) {
		setOrDelete(&s.byAddress, key, without(claims, uid))
	}
}

func (s *Snapshot) leaveServices(w *Workload) {
	for key := range w.Services {
		members, _ := s.endpoints.find(key)
		if members.remove(w.UID); members.len() > 0 {
			s.endpoints.set(key, members)
		} else {
			s.endpoints.remove(key)
		}
	}
}

func (s *Snapshot) addService(v *Service) {
	key := v.Key()
	s.services.set(key, v)
	s.hostnames.set(v.Hostname, with(s.hostnames.get(v.Hostname), key))
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			k := addressKey{a.Network, a.Prefix.Addr()}
			s.vips.set(k, with(s.vips.get(k), key))
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
	v, ok := s.services.find(key)
	if !ok {
		return
	}
	s.services.remove(key)
	setOrDelete(&s.hostnames, v.Hostname, without(s.hostnames.get(v.Hostname), key))
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			k := addressKey{a.Network, a.Prefix.Addr()}
			setOrDelete(&s.vips, k, without(s.vips.get(k), key))
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
	for _, w := range s.workloads.all() {
		for _, key := range w.Policies {
			named[key] = struct{}{}
		}
	}
	maps.DeleteFunc(removed, func(key string, _ struct{}) bool {
		_, ok := named[key]
		return !ok
	})
}

func setOrDelete[K comparable](t *table[K, []string], k K, v []string) {
	if len(v) == 0 {
		t.remove(k)
	} else {
		t.set(k, v)
	}
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
