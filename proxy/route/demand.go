package route

import (
	"net/netip"
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Names are those by which the control plane has to be asked where a connection
// leads. With its answers there may be more: gateways on the way. In a snapshot
// of the whole mesh there is nothing to ask.
func Names(s *model.Snapshot, src Source, dst netip.AddrPort) []string {
	if !s.OnDemand() {
		return nil
	}
	n := names{snapshot: s, network: src.network()}
	if !n.heard(model.AddressName(n.network, dst.Addr())) {
		return n.found
	}
	if w := s.WorkloadAt(n.network, dst.Addr()); w != nil {
		if w.Waypoint != nil {
			n.gateway(*w.Waypoint)
		}
		return n.found
	}
	for _, v := range s.ServicesAt(n.network, dst.Addr()) {
		for _, g := range v.Waypoints {
			n.gateway(g.Gateway)
		}
		n.abroad(v)
	}
	return n.found
}

// names are collected.
type names struct {
	snapshot *model.Snapshot
	network  string
	found    []string
}

// heard adds a name, and reports whether it is known what it stands for.
func (n *names) heard(name string) bool {
	if !slices.Contains(n.found, name) {
		n.found = append(n.found, name)
	}
	return n.snapshot.Heard(name)
}

// gateway is one on the way, whose own endpoints may be in another network.
func (n *names) gateway(g model.Gateway) {
	if name := g.Name(); name == "" || !n.heard(name) {
		return
	}
	if g.Service == "" {
		for _, v := range n.snapshot.ServicesAt(g.Network, g.Address) {
			n.abroad(v)
		}
	} else if v := n.snapshot.Service(g.Service); v != nil {
		n.abroad(v)
	}
}

// abroad are the gateways to the networks of a service's endpoints. These are
// dialed wherever they are, so nothing else is on the way to them.
func (n *names) abroad(v *model.Service) {
	for e := range n.snapshot.Endpoints(v.Key()) {
		if g := e.Workload.NetworkGateway; g != nil && e.Workload.Network != n.network && g.Name() != "" {
			n.heard(g.Name())
		}
	}
}
