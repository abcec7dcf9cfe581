package model

import (
	"net/netip"
	"strings"

	"github.com/benbjohnson/immutable"
)

// AddressName is by what an address is asked for on demand. Services and
// workloads with a hostname are asked for by "NAMESPACE/HOSTNAME".
func AddressName(network string, addr netip.Addr) string {
	return network + "/" + addr.Unmap().WithZone("").String()
}

// Name is by what a gateway is asked for on demand; empty for one that leads
// nowhere.
func (g Gateway) Name() string {
	switch {
	case g.Service != "":
		return g.Service
	case g.Address.IsValid():
		return AddressName(g.Network, g.Address)
	}
	return ""
}

// OnDemand reports whether the snapshot has only what was asked for, so that
// what is not in it may be there nevertheless: see [Snapshot.Heard].
func (s *Snapshot) OnDemand() bool { return s.heard != nil }

// Heard reports whether the control plane has said what a name stands for, or
// that it is nothing. In a snapshot of the whole mesh that holds for each.
func (s *Snapshot) Heard(name string) bool {
	if s.heard == nil {
		return true
	}
	_, ok := s.heard.Get(name)
	return ok
}

// Named yields the resources that a name on demand stands for: a workload by its
// UID or one of its addresses; else the services of the name or virtual address,
// each followed by its endpoints; else workloads of that hostname.
func (s *Snapshot) Named(name string, yield func(key string)) {
	if s.Workload(name) != nil {
		yield(name)
		return
	}
	if v := s.Service(name); v != nil {
		s.withEndpoints(v, yield)
		return
	}
	if uids := s.byName.get(name); len(uids) > 0 {
		for _, uid := range uids {
			yield(uid)
		}
		return
	}
	network, addr, ok := parseAddressName(name)
	if !ok {
		return
	}
	if w := s.WorkloadAt(network, addr); w != nil {
		yield(w.UID)
		return
	}
	for _, v := range s.ServicesAt(network, addr) {
		s.withEndpoints(v, yield)
	}
}

// Stands is the first of the resources that [Snapshot.Named] yields, without a
// look at endpoints; empty for a name that stands for nothing.
func (s *Snapshot) Stands(name string) string {
	if s.Workload(name) != nil || s.Service(name) != nil {
		return name
	}
	if uids := s.byName.get(name); len(uids) > 0 {
		return uids[0]
	}
	network, addr, ok := parseAddressName(name)
	if !ok {
		return ""
	}
	if w := s.WorkloadAt(network, addr); w != nil {
		return w.UID
	}
	if services := s.ServicesAt(network, addr); len(services) > 0 {
		return services[0].Key()
	}
	return ""
}

func (s *Snapshot) withEndpoints(v *Service, yield func(string)) {
	key := v.Key()
	yield(key)
	for e := range s.Endpoints(key) {
		yield(e.Workload.UID)
	}
}

// parseAddressName reads an AddressName.
func parseAddressName(name string) (network string, addr netip.Addr, ok bool) {
	slash := strings.LastIndexByte(name, '/')
	if slash < 0 {
		return "", netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(name[slash+1:])
	return name[:slash], addr, err == nil
}

// applyNames comes before all else of an update, whose names it does not read.
func (s *Snapshot) applyNames(u Update) {
	if u.OnDemand && s.heard == nil {
		s.heard = immutable.NewMap[string, struct{}](newHasher[string]())
	}
	if s.heard == nil {
		return
	}
	for _, name := range u.Unheard {
		s.heard = s.heard.Delete(name)
	}
	for _, name := range u.Heard {
		s.heard = s.heard.Set(name, struct{}{})
	}
}
