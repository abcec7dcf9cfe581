package dns

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Client is who asks.
type Client struct {
	Namespace string
	Network   string
}

// maxAddresses is how many of one service are told: more do not fit into a
// message.
const maxAddresses = 4000

// found is what the mesh knows of a name.
type found struct {
	// alias is the name of which the one asked for is an alias; empty if it
	// is none.
	alias     string
	addresses []netip.Addr // of the family asked for, in random order
}

// lookup says what the mesh knows of a name (lower case, without the last dot);
// ok is false of a name that is not the mesh's.
func (z Zone) lookup(s *model.Snapshot, c Client, name string, v6 bool) (f found, ok bool) {
	for try := range z.candidates(name, c.Namespace) {
		for pattern := range patterns(try.name) {
			service := z.pick(s.ServicesNamed(pattern), c)
			if service == nil {
				continue
			}
			f.addresses = z.addresses(s, c, service, v6)
			if len(f.addresses) == 0 && z.unknownHere(s, service) {
				return found{}, false
			}
			if pattern == try.name { // what a wildcard covers has no other name
				f.alias = try.stripped
			}
			return f, true
		}
	}
	return found{}, false
}

// pick chooses among services of one name: the one in the client's namespace,
// else the cluster's own, else the first. One without an address is only the
// mesh's to answer for if it is a service of the cluster; nil is none.
func (z Zone) pick(services []*model.Service, c Client) *model.Service {
	var best *model.Service
	rank := func(s *model.Service) int {
		switch {
		case s.Namespace == c.Namespace:
			return 0
		case s.Canonical:
			return 1
		}
		return 2
	}
	for _, s := range services {
		if s.Private && s.Namespace != c.Namespace || !hasAddress(s) && !z.has(s.Hostname) {
			continue
		}
		if best == nil || cmp.Less(rank(s), rank(best)) {
			best = s
		}
	}
	return best
}

func hasAddress(s *model.Service) bool {
	return slices.ContainsFunc(s.Addresses, func(a model.NetworkAddress) bool { return a.Prefix.IsSingleIP() })
}

// unknownHere is a headless service of which the mesh knows no endpoint: the
// cluster's own server may know some.
func (z Zone) unknownHere(s *model.Snapshot, service *model.Service) bool {
	if hasAddress(service) {
		return false
	}
	for range s.Endpoints(service.Key()) {
		return false
	}
	return true
}

// addresses are those of one family that the client can reach, in random
// order.
func (z Zone) addresses(s *model.Snapshot, c Client, service *model.Service, v6 bool) (out []netip.Addr) {
	if hasAddress(service) {
		for _, a := range service.Addresses {
			if ip := a.Prefix.Addr(); a.Network == c.Network && a.Prefix.IsSingleIP() && ip.Is6() == v6 {
				out = append(out, ip)
			}
		}
	} else {
		out = endpoints(s, c, service, v6)
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// endpoints are the addresses behind a headless service, one of each workload.
func endpoints(s *model.Snapshot, c Client, service *model.Service, v6 bool) (out []netip.Addr) {
	for e := range s.Endpoints(service.Key()) {
		w := e.Workload
		if w.Network != c.Network || (w.Unhealthy || w.Terminating) && !service.Unhealthy {
			continue
		}
		if i := slices.IndexFunc(w.Addresses, func(a netip.Addr) bool { return a.Is6() == v6 }); i >= 0 {
			out = append(out, w.Addresses[i])
		}
		if len(out) == maxAddresses {
			break
		}
	}
	return out
}

// canonical brings a name as DNS has it to the form of the mesh's hostnames.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
