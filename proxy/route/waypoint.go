package route

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// passes sets the waypoints that the connection has to pass, if there are any,
// and reports whether there are. A waypoint's own connections pass none: they
// would come back to it.
func (r *Route) passes(waypoints []model.WeightedGateway) bool {
	if len(waypoints) == 0 || slices.ContainsFunc(waypoints, func(g model.WeightedGateway) bool { return r.snapshot.IsGateway(g.Gateway, r.source.Workload) }) {
		return false
	}
	r.waypoints, r.Refusal = waypoints, NoWaypoint
	r.throughWaypoints(0, func(Candidate) bool {
		r.Refusal = NotRefused
		return false
	})
	return true
}

// throughWaypoints yields the endpoints of each waypoint in turn. They are told
// of the original destination, and choose among what is behind it.
func (r Route) throughWaypoints(seed uint64, yield func(Candidate) bool) {
	for _, g := range inOrder(r.waypoints, seed) {
		all := r.to(g.Gateway).straight(seed, func(c Candidate) bool {
			if c.beyond != nil { // it is in another network
				c.Target = r.Destination
				return yield(c)
			}
			return yield(Candidate{Means: HBONE, Workload: c.Workload, Target: r.Destination, via: c.Target})
		})
		if !all {
			return
		}
	}
}

// to is the way to a waypoint itself.
func (r *Route) to(g model.Gateway) Route { return r.toward(g, Route{behind: r}) }

// toward completes the way to a gateway.
func (r *Route) toward(g model.Gateway, way Route) Route {
	way.snapshot, way.source, way.Destination = r.snapshot, r.source, netip.AddrPortFrom(r.Destination.Addr(), g.Port)
	if g.Service != "" {
		if way.Service = r.snapshot.Service(g.Service); way.Service == nil {
			way.atName(g)
		}
	} else {
		way.Destination = netip.AddrPortFrom(g.Address, g.Port)
		way.workload = r.snapshot.WorkloadAt(g.Network, g.Address)
		if services := r.snapshot.ServicesAt(g.Network, g.Address); way.workload == nil && len(services) > 0 {
			way.Service = services[0]
		}
	}
	switch {
	case way.workload != nil && way.workload.Network != r.source.network() && !way.crossing:
		way.Refusal = NoWaypoint // there is no service to say who it may be
	case way.workload != nil:
	case way.Service == nil || way.Service.Balance == model.BalancePassthrough:
		way.Refusal = NoWaypoint
	default:
		way.Refusal = way.resolveService()
	}
	return way
}

// atName is the way to a gateway that is a workload with a hostname.
func (r *Route) atName(g model.Gateway) {
	w := r.snapshot.WorkloadNamed(g.Service)
	if w == nil {
		return
	}
	if addr, ok := addressLike(w.Reached(), r.Destination.Addr()); ok {
		r.workload, r.Destination = w, netip.AddrPortFrom(addr, g.Port)
	}
}

// inOrder puts waypoints into the order in which they are tried: a random one
// by weight, which the seed decides. Those without weight are not in it.
func inOrder(all []model.WeightedGateway, seed uint64) []model.WeightedGateway {
	if len(all) == 1 {
		return all
	}
	type runner struct {
		model.WeightedGateway
		score float64
	}
	var race []runner
	for i, g := range all {
		if g.Weight > 0 {
			race = append(race, runner{g, -math.Log(uniform(^seed, uint64(i))) / float64(g.Weight)})
		}
	}
	slices.SortFunc(race, func(a, b runner) int { return cmp.Compare(a.score, b.score) })
	ordered := make([]model.WeightedGateway, len(race))
	for i := range race {
		ordered[i] = race[i].WeightedGateway
	}
	return ordered
}
