package route

import (
	"net"
	"strconv"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Beyond is what is behind a gateway to another network: a second mutual TLS
// connection, inside the one to the gateway, leads there.
type Beyond struct {
	// Authority is the service's "HOSTNAME:PORT", for the gateway and for who
	// is behind it: addresses mean nothing in another network.
	Authority string
	// Identities are those of which the far end must prove one.
	Identities []model.Identity
}

// Beyond is what is behind the gateway that the candidate is; nil if it is none
// to another network.
func (c Candidate) Beyond() *Beyond { return c.beyond }

// outOfReach says why an endpoint in another network cannot be reached. Which
// workload is chosen there this side does not learn, so it must be known of all
// of them who they may be.
func (r *Route) outOfReach(w *model.Workload) string {
	switch {
	case w.NetworkGateway == nil:
		return "is in another network, without a gateway to it"
	case r.authority() == "":
		return "is in another network, where it is reached for services alone"
	case len(withNames(nil, r.Service)) == 0:
		return "is in another network, and its service does not say who is there"
	case r.across(w).Refusal != NotRefused:
		return "is in another network, whose gateway has no usable endpoint"
	}
	return ""
}

// authority is what the connection is for, in any network; empty if there is no
// name for it.
func (r *Route) authority() string {
	if r.behind != nil {
		return r.behind.authority()
	}
	if r.Service == nil {
		return ""
	}
	return net.JoinHostPort(r.Service.Hostname, strconv.Itoa(int(r.Destination.Port())))
}

// across is the way to the gateway of a workload's network.
func (r *Route) across(w *model.Workload) Route {
	way := Route{crossing: true}
	return r.toward(*w.NetworkGateway, way)
}

// onwards yields a candidate, or the gateways by which it is reached.
func (r *Route) onwards(c Candidate, seed uint64, yield func(Candidate) bool) bool {
	if !c.far {
		return yield(c)
	}
	beyond := &Beyond{Authority: r.authority(), Identities: withNames(nil, r.Service)}
	return r.across(c.Workload).straight(seed, func(g Candidate) bool {
		return yield(Candidate{Means: HBONE, Workload: g.Workload, Target: r.Destination, via: g.Target, beyond: beyond})
	})
}
