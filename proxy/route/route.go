// Package route decides where an outbound connection goes: which service its
// original destination names, which workloads may serve it, in which order
// they are tried, and how each of them is reached.
//
// It is a pure function of one immutable snapshot. What does not belong here:
// dialing, waiting for a snapshot, and whether the connection is allowed.
package route

import (
	"net/netip"
	"slices"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Source is the pod that opened the connection.
type Source struct {
	// Workload is nil until the control plane has named the pod; cluster and
	// locality are then those of the zero value.
	Workload *model.Workload
	// Address is the client's own, by which ClientIP affinity chooses.
	Address netip.Addr
	// Namespace and Node are known from the node's agent at once.
	Namespace string
	Node      string
	Network   string // of the node
}

func (s *Source) network() string {
	if s.Workload == nil {
		return s.Network
	}
	return s.Workload.Network
}

func (s *Source) cluster() string {
	if s.Workload == nil {
		return ""
	}
	return s.Workload.ClusterID
}

func (s *Source) locality() model.Locality {
	if s.Workload == nil {
		return model.Locality{}
	}
	return s.Workload.Locality
}

// Refusal is why a connection goes nowhere.
type Refusal uint8

// The refusals. NoEndpoints, NoWaypoint and UnknownPort may pass with the next snapshot;
// NotReady passes with the first full list of workloads and services, NotHeard
// with the control plane's answer.
const (
	NotRefused Refusal = iota
	NotReady
	Loop        // the proxy's own port on the client's own address
	UnknownPort // the service has no such port
	NoEndpoints // the service has no endpoint that may be used
	NoWaypoint  // what is to be passed on the way there is not there
	NotHeard    // the control plane has not said what is there; see Names
)

// String is a short phrase for logs and metrics.
func (r Refusal) String() string {
	switch r {
	case NotRefused:
		return "not refused"
	case NotReady:
		return "no full list of workloads and services yet"
	case Loop:
		return "destination is the proxy itself"
	case UnknownPort:
		return "service has no such port"
	case NoEndpoints:
		return "service has no usable endpoint"
	case NoWaypoint:
		return "its waypoint has no usable endpoint"
	case NotHeard:
		return "the control plane has not said yet what is there"
	}
	return "unknown refusal"
}

// Route is where a connection may go. The zero Route leads nowhere.
type Route struct {
	// Destination is the original one, never an IPv4-mapped IPv6 address.
	Destination netip.AddrPort
	// Service is what the destination names; nil if it is no service's.
	Service *model.Service
	// Refusal is why there are no candidates, where there are none.
	Refusal Refusal

	snapshot *model.Snapshot
	source   Source
	port     model.Port      // of Service, for Destination
	workload *model.Workload // at Destination itself
	// waypoints are those of which one is passed; none: straight there.
	waypoints []model.WeightedGateway
	behind    *Route // of the way to a waypoint: what is behind that
	crossing  bool   // the way to another network's gateway, which is dialed wherever it is
}

// Resolve finds what the original destination of a connection means to its
// source: a workload's address first, then a service's virtual address, else
// the destination itself, as it stands.
func Resolve(s *model.Snapshot, src Source, dst netip.AddrPort) Route {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	r := Route{Destination: dst, snapshot: s, source: src}
	switch {
	case OwnPort(dst.Port()) && (dst.Addr().IsLoopback() || dst.Addr() == src.Address.Unmap()):
		r.Refusal = Loop
		return r
	case !s.AddressesReady():
		// What is merely not known yet must not leave in clear.
		r.Refusal = NotReady
		return r
	case slices.ContainsFunc(Names(s, src, dst), func(name string) bool { return !s.Heard(name) }):
		r.Refusal = NotHeard
		return r
	}
	if r.workload = s.WorkloadAt(src.network(), dst.Addr()); r.workload != nil {
		if g := r.workload.Waypoint; g != nil {
			r.passes([]model.WeightedGateway{{Gateway: *g, Weight: 1}})
		}
		return r
	}
	if r.Service = visible(s.ServicesAt(src.network(), dst.Addr()), src.Namespace); r.Service != nil && !r.passes(r.Service.Waypoints) {
		r.Refusal = r.resolveService()
	}
	return r
}

func (r *Route) resolveService() Refusal {
	if r.Service.Balance == model.BalancePassthrough {
		return NotRefused
	}
	port, ok := portOf(r.Service.Ports, r.Destination.Port())
	if !ok {
		return UnknownPort
	}
	r.port = port
	for e := range r.snapshot.Endpoints(r.Service.Key()) {
		if _, _, unfit := r.consider(e); unfit == "" {
			return NotRefused
		}
	}
	return NoEndpoints
}

// visible picks among services that share an address: one of the client's
// namespace, else the canonical one, else the first.
func visible(services []*model.Service, namespace string) *model.Service {
	var best *model.Service
	for _, v := range services {
		switch {
		case v.Namespace == namespace:
			return v
		case v.Private:
		case best == nil || v.Canonical && !best.Canonical:
			best = v
		}
	}
	return best
}

// OwnPort reports whether the proxy itself listens on the port, inside every
// captured pod.
func OwnPort(p uint16) bool {
	return p == protocol.OutboundPort || p == protocol.PlaintextPort || p == protocol.HBONEPort
}

func portOf(ports []model.Port, service uint16) (model.Port, bool) {
	for _, p := range ports {
		if p.Service == service {
			return p, true
		}
	}
	return model.Port{}, false
}
