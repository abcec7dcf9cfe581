package route

import (
	"iter"
	"math"
	"net/netip"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Means is how a candidate is reached.
type Means uint8

// The means. All but HBONE are plain TCP.
const (
	HBONE       Means = iota + 1
	Unmeshed          // the workload is not captured, so nobody there speaks HBONE
	Skipped           // the workload skips inbound capture of the port
	Passthrough       // no workload is known: the original destination as it stands
)

// String is a word for logs and metrics.
func (m Means) String() string {
	switch m {
	case HBONE:
		return "hbone"
	case Unmeshed:
		return "unmeshed"
	case Skipped:
		return "skipped"
	case Passthrough:
		return "passthrough"
	}
	return "none"
}

// Candidate is one place that a connection may go to.
type Candidate struct {
	Means    Means
	Workload *model.Workload // nil for Passthrough
	// Target is the application's address and port.
	Target netip.AddrPort

	service *model.Service
	via     netip.AddrPort // of a gateway on the way, which is Workload then; invalid without one
	beyond  *Beyond        // what is behind that in another network; nil: nothing
	far     bool           // Workload is in another network, its gateway not chosen yet
}

// ByGateway reports whether Workload is a gateway on the way to the target.
func (c Candidate) ByGateway() bool { return c.via.IsValid() }

// Dial is the address to open a TCP connection to: the target itself, the
// HBONE port beside it, or that of the gateway on the way.
func (c Candidate) Dial() netip.AddrPort {
	if c.ByGateway() {
		return c.via
	}
	if c.Means != HBONE {
		return c.Target
	}
	return netip.AddrPortFrom(c.Target.Addr(), protocol.HBONEPort)
}

// Identities are those of which the peer must prove one: the workload's own,
// then the ones that its service allows besides. None without a workload.
func (c Candidate) Identities() []model.Identity {
	if c.Workload == nil {
		return nil
	}
	ids := c.Workload.Identities()
	if c.service == nil {
		return ids
	}
	return withNames(ids, c.service)
}

// withNames adds the identities that a service allows.
func withNames(ids []model.Identity, v *model.Service) []model.Identity {
	for _, san := range v.SANs {
		// A name that is no SPIFFE id of a workload is proven by no peer.
		if id, err := model.ParseIdentity(san); err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Candidates yields where to connect, best first: to be tried in turn until
// one answers. No candidate comes twice and none that may be used is left
// out. Endpoints that match the service's locality preference best come
// first, terminating ones last; among equals the order is random by capacity,
// decided by the seed, or by the client's address alone where the service has
// ClientIP affinity.
//
// Each step looks at every endpoint of the service again and keeps nothing:
// most connections take one.
func (r Route) Candidates(seed uint64) iter.Seq[Candidate] {
	return func(yield func(Candidate) bool) {
		if r.waypoints == nil {
			r.straight(seed, yield)
		} else {
			r.throughWaypoints(seed, yield)
		}
	}
}

// straight yields the candidates of a route that passes no waypoint, and
// reports whether all of them were taken.
func (r Route) straight(seed uint64, yield func(Candidate) bool) bool {
	if c, ok := r.only(); ok {
		return yield(c)
	}
	if r.Service == nil || r.Refusal != NotRefused {
		return true
	}
	if r.Service.Affinity > 0 {
		seed = addressSeed(r.source.Address)
	}
	for c, at, ok := r.after(place{tier: -1}, seed); ok; c, at, ok = r.after(at, seed) {
		if !r.onwards(c, seed, yield) {
			return false
		}
	}
	return true
}

// only is the candidate of a route that has no choice.
func (r Route) only() (Candidate, bool) {
	switch {
	case r.Refusal != NotRefused || r.snapshot == nil:
		return Candidate{}, false
	case r.workload != nil:
		return Candidate{Means: means(r.workload, r.Destination.Port()), Workload: r.workload, Target: r.Destination}, true
	case r.Service == nil || r.Service.Balance == model.BalancePassthrough:
		return Candidate{Means: Passthrough, Target: r.Destination, service: r.Service}, true
	}
	return Candidate{}, false
}

func means(w *model.Workload, port uint16) Means {
	switch {
	case w.Protocol != model.ProtocolHBONE:
		return Unmeshed
	case w.SkipInbound.Contains(port):
		return Skipped
	}
	return HBONE
}

// place is a candidate's position in the order of trying: the lower the
// earlier. The index in the snapshot's own order makes it unique.
type place struct {
	tier  int
	score float64
	index int
}

func (p place) before(q place) bool {
	if p.tier != q.tier {
		return p.tier < q.tier
	}
	if p.score != q.score {
		return p.score < q.score
	}
	return p.index < q.index
}

// after finds the first candidate behind a place.
//
// The score is an exponential race: -ln(u)/capacity with u uniform in (0,1]
// is lowest with a probability proportional to the capacity, for the first
// place and for every further one. With u taken from the client's address
// and the endpoint's name the same race is rendezvous hashing: an endpoint
// that comes or goes moves only the clients that it takes or leaves.
func (r Route) after(last place, seed uint64) (Candidate, place, bool) {
	var (
		best  Candidate
		at    = place{tier: math.MaxInt}
		index = -1
	)
	for e := range r.snapshot.Endpoints(r.Service.Key()) {
		index++
		target, tier, unfit := r.consider(e)
		if unfit != "" || tier > at.tier || tier < last.tier {
			continue
		}
		name := uint64(index)
		if r.Service.Affinity > 0 {
			name = xxhash.Sum64String(e.Workload.UID)
		}
		u, capacity := uniform(seed, name), float64(max(e.Workload.Capacity, 1))
		// -ln(u) >= 1-u: most logarithms need not be computed.
		if tier == at.tier && (1-u)/capacity > at.score {
			continue
		}
		p := place{tier: tier, score: -math.Log(u) / capacity, index: index}
		if last.before(p) && p.before(at) {
			at = p
			best = Candidate{Means: means(e.Workload, target.Port()), Workload: e.Workload, Target: target, service: r.Service, far: !target.IsValid()}
		}
	}
	return best, at, best.Workload != nil
}

// Tiers, best first: how many scopes of the preference do not match, beyond
// which come terminating endpoints and then those with no capacity at all.
const (
	tierTerminating = 1 << 16
	tierNoCapacity  = 1 << 17
)

// consider says where an endpoint would be reached, nowhere in particular if by
// a gateway to its network, and in which tier, or why it may not be used.
func (r *Route) consider(e model.Endpoint) (target netip.AddrPort, tier int, unfit string) {
	w := e.Workload
	if w.Unhealthy && !r.Service.Unhealthy {
		return target, 0, "is unhealthy"
	}
	if w.Network != r.source.network() && !r.crossing {
		unfit = r.outOfReach(w)
	} else {
		target, unfit = r.near(e)
	}
	if unfit != "" {
		return target, 0, unfit
	}
	if r.Service.Balance == model.BalanceStrict || r.Service.Balance == model.BalanceFailover {
		tier = len(r.Service.Prefer) - r.source.matched(r.Service.Prefer, w)
	}
	if tier > 0 && r.Service.Balance == model.BalanceStrict {
		return target, 0, "is outside the required locality"
	}
	if w.Terminating {
		tier += tierTerminating
	}
	if w.Capacity == 0 {
		tier += tierNoCapacity
	}
	return target, tier, ""
}

// near is where an endpoint is that can be dialed.
func (r *Route) near(e model.Endpoint) (target netip.AddrPort, unfit string) {
	port := r.port.Target
	if own, ok := portOf(e.Ports, r.port.Service); ok && own.Target != 0 {
		port = own.Target
	}
	if port == 0 {
		return target, "does not have the named port"
	}
	addr, ok := addressLike(e.Workload.Reached(), r.Destination.Addr())
	if !ok {
		return target, "has no address"
	}
	return netip.AddrPortFrom(addr, port), ""
}

// addressLike prefers the destination's address family: the application may
// be bound to that one only.
func addressLike(addresses []netip.Addr, dst netip.Addr) (netip.Addr, bool) {
	for _, a := range addresses {
		if a.Is4() == dst.Is4() {
			return a, true
		}
	}
	if len(addresses) == 0 {
		return netip.Addr{}, false
	}
	return addresses[0], true
}

// matched counts the scopes, from the first, in which both ends agree.
func (s *Source) matched(prefer []model.Scope, w *model.Workload) int {
	for i, scope := range prefer {
		if !s.agrees(scope, w) {
			return i
		}
	}
	return len(prefer)
}

func (s *Source) agrees(scope model.Scope, w *model.Workload) bool {
	switch scope {
	case model.ScopeNode:
		return s.Node == w.Node
	case model.ScopeRegion:
		return s.locality().Region == w.Locality.Region
	case model.ScopeZone:
		return s.locality().Zone == w.Locality.Zone
	case model.ScopeSubzone:
		return s.locality().Subzone == w.Locality.Subzone
	case model.ScopeCluster:
		return s.cluster() == w.ClusterID
	case model.ScopeNetwork:
		return s.network() == w.Network
	}
	return false
}

func addressSeed(a netip.Addr) uint64 {
	b := a.As16()
	return xxhash.Sum64(b[:])
}

// uniform maps a seed and a name to (0,1]: the finalizer of SplitMix64, whose
// upper 53 bits fill a float64.
func uniform(seed, name uint64) float64 {
	x := seed + (name+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64((x^x>>31)>>11+1) / (1 << 53)
}
