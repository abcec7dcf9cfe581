package server

import (
	"net/netip"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// A proxy may ask for addresses one by one, by the resource's own name or by
// "NETWORK/IP". With a service come its endpoints. (Istio's on-demand mode.)

// demanded is what a stream that asked for names should have: those, and,
// without asking, the workloads of its node. It also returns the names that
// stand for nothing.
func (s *state) demanded(names map[string]struct{}, node string) (wanted *resources, absent map[string]bool) {
	wanted, absent = newResources(), map[string]bool{}
	add := func(name string) {
		if r, ok := s.addresses.all.Get(name); ok {
			wanted = wanted.Set(name, r)
		}
	}
	for name := range names {
		found := s.resolve(name)
		if len(found) == 0 {
			absent[name] = true
		}
		for _, f := range found {
			add(f)
		}
	}
	for _, uid := range s.onNode(node) {
		add(uid)
	}
	return wanted, absent
}

// resolve finds the resources that a name stands for.
func (s *state) resolve(name string) (out []string) {
	if s.snapshot.Workload(name) != nil {
		return []string{name}
	}
	if v := s.snapshot.Service(name); v != nil {
		return s.withEndpoints(nil, v)
	}
	network, ip, _ := strings.Cut(name, "/")
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil
	}
	if w := s.snapshot.WorkloadAt(network, addr); w != nil {
		return []string{w.UID}
	}
	for _, v := range s.snapshot.ServicesAt(network, addr) {
		out = s.withEndpoints(out, v)
	}
	return out
}

func (s *state) withEndpoints(out []string, v *model.Service) []string {
	out = append(out, v.Key())
	for e := range s.snapshot.Endpoints(v.Key()) {
		out = append(out, e.Workload.UID)
	}
	return out
}

func (s *state) onNode(node string) []string {
	s.indexNodes.Do(func() {
		s.byNode = map[string][]string{}
		for _, w := range s.snapshot.Workloads() {
			s.byNode[w.Node] = append(s.byNode[w.Node], w.UID)
		}
	})
	return s.byNode[node]
}
