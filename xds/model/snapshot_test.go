package model

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// naive is the mesh as plain maps, rebuilt from every update so far.
type naive struct {
	workloads map[string]*Workload
	claims    map[string][]string // network/address -> UIDs, oldest first
	services  map[string]*Service
	policies  map[string]*Policy
	removed   map[string]bool
}

func newNaive() *naive {
	return &naive{map[string]*Workload{}, map[string][]string{}, map[string]*Service{}, map[string]*Policy{}, map[string]bool{}}
}

func (n *naive) apply(u Update) {
	for _, key := range u.RemovedAddresses {
		if n.workloads[key] != nil {
			delete(n.workloads, key)
		} else {
			delete(n.services, key)
		}
	}
	n.settle()
	for _, v := range u.Services {
		n.services[v.Key()] = v
	}
	for _, w := range u.Workloads {
		n.workloads[w.UID] = w
		n.settle()
	}
	for _, key := range u.RemovedPolicies {
		delete(n.policies, key)
		n.removed[key] = true
	}
	for _, p := range u.Policies {
		n.policies[p.Key()] = p
		delete(n.removed, p.Key())
	}
}

func addressOf(network string, a netip.Addr) string { return network + "/" + a.String() }

// settle drops claims that are none any more, and adds new ones.
func (n *naive) settle() {
	has := func(uid, address string) bool {
		w := n.workloads[uid]
		return w != nil && !w.HostNetwork && slices.ContainsFunc(w.Addresses, func(a netip.Addr) bool { return addressOf(w.Network, a) == address })
	}
	for address, uids := range n.claims {
		n.claims[address] = slices.DeleteFunc(uids, func(uid string) bool { return !has(uid, address) })
	}
	for uid, w := range n.workloads {
		for _, a := range w.Addresses {
			if address := addressOf(w.Network, a); has(uid, address) && !slices.Contains(n.claims[address], uid) {
				n.claims[address] = append(n.claims[address], uid)
			}
		}
	}
}

// view is everything that a snapshot can be asked in the tests' small world.
func view(s *Snapshot) map[string]string {
	out := map[string]string{}
	for _, uid := range drawnUIDs {
		out["workload "+uid] = name(s.Workload(uid))
	}
	for _, network := range drawnNetworks {
		for _, a := range drawnAddrs {
			out["at "+addressOf(network, a)] = name(s.WorkloadAt(network, a))
			out["services at "+addressOf(network, a)] = names(s.ServicesAt(network, a))
		}
	}
	for _, h := range drawnHosts {
		out["services named "+h] = names(s.ServicesNamed(h))
		for _, ns := range drawnNamespaces {
			key := ns + "/" + h
			if v := s.Service(key); v != nil {
				out["service "+key] = v.Name
			}
			var members []string
			for e := range s.Endpoints(key) {
				members = append(members, fmt.Sprint(name(e.Workload), e.Ports))
			}
			slices.Sort(members)
			out["endpoints "+key] = fmt.Sprint(members)
		}
	}
	for _, ns := range drawnNamespaces {
		out["policies of "+ns] = keysOf(s, s.NamespacePolicies(ns))
		for _, n := range drawnPolicies {
			p, removed := s.Policy(ns + "/" + n)
			out["policy "+ns+"/"+n] = fmt.Sprint(p != nil && s.PolicyKey(p) == p.Key(), removed)
		}
	}
	out["global"] = keysOf(s, s.GlobalPolicies())
	out["lists"] = fmt.Sprint(len(s.Workloads()), names(s.Services()), keysOf(s, s.Policies()), s.RemovedPolicies())
	return out
}

func (n *naive) view() map[string]string {
	out := map[string]string{}
	for _, uid := range drawnUIDs {
		out["workload "+uid] = name(n.workloads[uid])
	}
	for _, network := range drawnNetworks {
		for _, a := range drawnAddrs {
			claims := n.claims[addressOf(network, a)]
			out["at "+addressOf(network, a)] = "none"
			if len(claims) > 0 {
				out["at "+addressOf(network, a)] = name(n.workloads[claims[len(claims)-1]])
			}
			out["services at "+addressOf(network, a)] = names(n.servicesAt(network, a))
		}
	}
	for _, h := range drawnHosts {
		out["services named "+h] = names(n.listServices(func(v *Service) bool { return v.Hostname == h }))
		for _, ns := range drawnNamespaces {
			key := ns + "/" + h
			if v := n.services[key]; v != nil {
				out["service "+key] = v.Name
			}
			var members []string
			for _, w := range n.workloads {
				if ports, ok := w.Services[key]; ok {
					members = append(members, fmt.Sprint(name(w), ports))
				}
			}
			slices.Sort(members)
			out["endpoints "+key] = fmt.Sprint(members)
		}
	}
	for _, ns := range drawnNamespaces {
		out["policies of "+ns] = fmt.Sprint(n.listPolicies(func(p *Policy) bool { return p.Scope == ScopeNamespace && p.Namespace == ns }))
		for _, name := range drawnPolicies {
			key := ns + "/" + name
			out["policy "+key] = fmt.Sprint(n.policies[key] != nil, n.removed[key])
		}
	}
	out["global"] = fmt.Sprint(n.listPolicies(func(p *Policy) bool { return p.Scope == ScopeGlobal }))
	all := n.listServices(func(*Service) bool { return true })
	policies := n.listPolicies(func(*Policy) bool { return true })
	out["lists"] = fmt.Sprint(len(n.workloads), names(all), fmt.Sprint(policies), slices.Sorted(maps.Keys(n.removed)))
	return out
}

func (n *naive) servicesAt(network string, a netip.Addr) []*Service {
	longest := -1
	covers := func(v *Service, bits int) bool {
		return slices.ContainsFunc(v.Addresses, func(x NetworkAddress) bool {
			return x.Network == network && x.Prefix.Contains(a) && x.Prefix.Bits() == bits
		})
	}
	for _, v := range n.services {
		for bits := longest + 1; bits <= a.BitLen(); bits++ {
			if covers(v, bits) {
				longest = bits
			}
		}
	}
	return n.listServices(func(v *Service) bool { return covers(v, longest) })
}

func (n *naive) listServices(keep func(*Service) bool) (out []*Service) {
	for _, key := range slices.Sorted(maps.Keys(n.services)) {
		if keep(n.services[key]) {
			out = append(out, n.services[key])
		}
	}
	return out
}

func (n *naive) listPolicies(keep func(*Policy) bool) []string {
	out := []string{}
	for _, key := range slices.Sorted(maps.Keys(n.policies)) {
		if keep(n.policies[key]) {
			out = append(out, key)
		}
	}
	return out
}

func name(w *Workload) string {
	if w == nil {
		return "none"
	}
	return w.UID + "=" + w.Name
}

func names(services []*Service) string {
	out := []string{}
	for _, v := range services {
		out = append(out, v.Key()+"="+v.Name)
	}
	return fmt.Sprint(out)
}

func keysOf(s *Snapshot, policies []*Policy) string {
	out := []string{}
	for _, p := range policies {
		out = append(out, s.PolicyKey(p))
	}
	return fmt.Sprint(out)
}

var (
	drawnUIDs       = []string{"w1", "w2", "w3"}
	drawnNetworks   = []string{"", "n"}
	drawnAddrs      = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}
	drawnPrefixes   = []string{"10.0.0.1/32", "10.0.0.0/24", "10.0.0.0/30", "fd00::1/128", "fd00::/8"}
	drawnHosts      = []string{"h1", "h2"}
	drawnNamespaces = []string{"a", "b"}
	drawnPolicies   = []string{"p", "q"}
)

func drawUpdate(t *rapid.T) Update {
	version := func() string { return fmt.Sprint(rapid.IntRange(0, 99).Draw(t, "version")) }
	pick := func(label string, values []string) string { return rapid.SampledFrom(values).Draw(t, label) }
	keys := []string{"a/h1", "a/h2", "b/h1", "b/h2"}
	var u Update
	for range rapid.IntRange(0, 2).Draw(t, "workloads") {
		w := &Workload{
			UID: pick("uid", drawnUIDs), Name: version(), Network: pick("network", drawnNetworks),
			HostNetwork: rapid.IntRange(0, 4).Draw(t, "host network") == 0,
			Addresses:   rapid.SliceOfNDistinct(rapid.SampledFrom(drawnAddrs), 0, 2, rapid.ID[netip.Addr]).Draw(t, "addresses"),
			Services:    map[string][]Port{},
		}
		for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 0, 2, rapid.ID[string]).Draw(t, "services of it") {
			w.Services[key] = []Port{{Service: uint16(rapid.IntRange(1, 3).Draw(t, "port"))}}
		}
		u.Workloads = append(u.Workloads, w)
	}
	for range rapid.IntRange(0, 2).Draw(t, "services") {
		v := &Service{Name: version(), Namespace: pick("namespace", drawnNamespaces), Hostname: pick("hostname", drawnHosts)}
		for range rapid.IntRange(0, 2).Draw(t, "vips") {
			v.Addresses = append(v.Addresses, NetworkAddress{pick("network", drawnNetworks), netip.MustParsePrefix(pick("vip", drawnPrefixes))})
		}
		u.Services = append(u.Services, v)
	}
	for range rapid.IntRange(0, 2).Draw(t, "policies") {
		u.Policies = append(u.Policies, &Policy{
			Namespace: pick("namespace", drawnNamespaces), Name: pick("policy", drawnPolicies),
			Scope: PolicyScope(rapid.IntRange(0, 2).Draw(t, "scope")),
		})
	}
	u.RemovedAddresses = rapid.SliceOfN(rapid.SampledFrom(append(keys, drawnUIDs...)), 0, 2).Draw(t, "removed addresses")
	u.RemovedPolicies = rapid.SliceOfN(rapid.SampledFrom([]string{"a/p", "a/q", "b/p"}), 0, 1).Draw(t, "removed policies")
	return u
}

// However updates follow each other, a snapshot answers as plain maps would,
// and no snapshot before it changes its answers.
func TestApplyAgreesWithPlainMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, n := NewSnapshot(), newNaive()
		var snapshots []*Snapshot
		var views []map[string]string
		for range rapid.IntRange(1, 6).Draw(t, "updates") {
			u := drawUpdate(t)
			s = s.Apply(u)
			n.apply(u)
			snapshots, views = append(snapshots, s), append(views, n.view())
		}
		for i, s := range snapshots {
			if diff := cmp.Diff(views[i], view(s)); diff != "" {
				t.Fatalf("snapshot %d of %d (-maps +snapshot):\n%s", i, len(snapshots), diff)
			}
			if s.Generation() != uint64(i+1) {
				t.Fatalf("snapshot %d has generation %d", i, s.Generation())
			}
		}
	})
}

func TestReadiness(t *testing.T) {
	s := NewSnapshot()
	if s.AddressesReady() || s.PoliciesReady() {
		t.Error("the empty snapshot is ready")
	}
	s = s.Apply(Update{PoliciesComplete: true})
	if s.AddressesReady() || !s.PoliciesReady() {
		t.Error("with all policies only the policies are ready")
	}
	s = s.Apply(Update{AddressesComplete: true}).Apply(Update{})
	if !s.AddressesReady() || !s.PoliciesReady() {
		t.Error("readiness is lost by an update")
	}
}

// A pod that ends goes on changing its status after its address has been given
// to the next one.
func TestAnOldHolderDoesNotWinItsAddressBack(t *testing.T) {
	a := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	s := NewSnapshot().Apply(Update{Workloads: []*Workload{{UID: "old", Addresses: a}}})
	s = s.Apply(Update{Workloads: []*Workload{{UID: "new", Addresses: a}}})
	s = s.Apply(Update{Workloads: []*Workload{{UID: "old", Addresses: a, Terminating: true}}})
	if got := s.WorkloadAt("", a[0]); got.UID != "new" {
		t.Errorf("the address belongs to %s", got.UID)
	}
	s = s.Apply(Update{RemovedAddresses: []string{"new"}})
	if got := s.WorkloadAt("", a[0]); got == nil || got.UID != "old" {
		t.Errorf("without the new one the address belongs to %v", got)
	}
}

func TestSnapshotsOfOneOriginDoNotShareTheirChanges(t *testing.T) {
	a := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	with := func(s *Snapshot, uid string) *Snapshot {
		return s.Apply(Update{Workloads: []*Workload{{UID: uid, Addresses: a}}})
	}
	origin := with(with(with(NewSnapshot(), "1"), "2"), "3")
	left, right := with(origin, "left"), with(origin, "right")
	if l, r := left.WorkloadAt("", a[0]).UID, right.WorkloadAt("", a[0]).UID; l != "left" || r != "right" {
		t.Errorf("the address belongs to %s and %s", l, r)
	}
}

func TestRemovedPoliciesAreBounded(t *testing.T) {
	s := NewSnapshot().Apply(Update{Workloads: []*Workload{{UID: "w", Policies: []string{"a/named"}}}})
	s = s.Apply(Update{RemovedPolicies: []string{"a/named"}})
	for i := range maxRemoved {
		s = s.Apply(Update{RemovedPolicies: []string{fmt.Sprintf("a/%d", i)}})
		if n := len(s.RemovedPolicies()); n > maxRemoved {
			t.Fatalf("%d removed policies are remembered", n)
		}
	}
	if _, removed := s.Policy("a/named"); !removed {
		t.Error("a removed policy that a workload names was forgotten")
	}
	if _, removed := s.Policy("a/0"); removed {
		t.Error("a removed policy that nobody names is still remembered")
	}
}
