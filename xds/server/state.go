package server

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"slices"

	"github.com/benbjohnson/immutable"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// resources are resources by name. Maps of two generations share what is the
// same in both, and so do those of all streams.
type resources = immutable.Map[string, *discovery.Resource]

func newResources() *resources {
	return immutable.NewMap[string, *discovery.Resource](hasher{maphash.MakeSeed()})
}

// hasher has a seed, unlike the map's own: names are users' to choose.
type hasher struct{ seed maphash.Seed }

func (h hasher) Hash(name string) uint32 { return uint32(maphash.String(h.seed, name)) }
func (h hasher) Equal(a, b string) bool  { return a == b }

// set is all of one kind, and how it differs from the set before it.
type set struct {
	all     *resources
	before  *resources
	changed []*discovery.Resource
	removed []string
}

// state is everything at one generation. It never changes.
type state struct {
	generation uint64
	snapshot   *model.Snapshot // to resolve names other than the resources' own
	policies   [wire.Dialects]set
	addresses  set

	byNode *immutable.Map[string, []string] // UIDs of the workloads of a node
}

func newState() *state {
	s := &state{
		snapshot: model.NewSnapshot(), addresses: set{all: newResources()},
		byNode: immutable.NewMap[string, []string](hasher{maphash.MakeSeed()}),
	}
	for d := range s.policies {
		s.policies[d] = set{all: newResources()}
	}
	return s
}

func (s *state) ready() bool { return s.snapshot.AddressesReady() && s.snapshot.PoliciesReady() }

func (s *state) apply(u model.Update) (*state, error) {
	var policies [wire.Dialects][]*discovery.Resource
	var addresses []*discovery.Resource
	for _, p := range u.Policies {
		encoded := map[*model.Policy]*discovery.Resource{}
		for d := range policies {
			reduced := wire.For(p, wire.Dialect(d))
			if encoded[reduced] == nil {
				r, err := encode(p.Key(), nil, reduced, wire.EncodePolicy)
				if err != nil {
					return nil, err
				}
				encoded[reduced] = r
			}
			policies[d] = append(policies[d], encoded[reduced])
		}
	}
	for _, v := range u.Services {
		r, err := encode(v.Key(), serviceAliases(v), v, wire.EncodeService)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, r)
	}
	for _, w := range u.Workloads {
		r, err := encode(w.UID, workloadAliases(w), w, wire.EncodeWorkload)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, r)
	}
	next := &state{
		generation: s.generation + 1,
		snapshot:   s.snapshot.Apply(u),
		addresses:  s.addresses.next(addresses, u.RemovedAddresses),
		byNode:     s.nodes(u),
	}
	for d := range next.policies {
		next.policies[d] = s.policies[d].next(policies[d], u.RemovedPolicies)
	}
	return next, nil
}

// nodes are the workloads of each node after an update.
func (s *state) nodes(u model.Update) *immutable.Map[string, []string] {
	out := s.byNode
	move := func(uid, to string) {
		from := to
		if old := s.snapshot.Workload(uid); old != nil {
			from = old.Node
		}
		if from != to && from != "" {
			left, _ := out.Get(from)
			if left = slices.DeleteFunc(slices.Clone(left), func(other string) bool { return other == uid }); len(left) > 0 {
				out = out.Set(from, left)
			} else {
				out = out.Delete(from)
			}
		}
		if there, _ := out.Get(to); to != "" && !slices.Contains(there, uid) {
			out = out.Set(to, append(slices.Clip(there), uid))
		}
	}
	for _, uid := range u.RemovedAddresses {
		move(uid, "")
	}
	for _, w := range u.Workloads {
		move(w.UID, w.Node)
	}
	return out
}

// next is the set after a change; what is as it was counts as no change.
func (s set) next(changed []*discovery.Resource, removed []string) set {
	n := set{all: s.all, before: s.all}
	for _, name := range removed {
		if _, ok := n.all.Get(name); ok {
			n.all = n.all.Delete(name)
			n.removed = append(n.removed, name)
		}
	}
	for _, r := range changed {
		if old, ok := n.all.Get(r.Name); ok && old.Version == r.Version {
			continue
		}
		n.all = n.all.Set(r.Name, r)
		n.changed = append(n.changed, r)
	}
	return n
}

// encode makes the resource that all streams share. Its version is a hash of
// its content, so that it means the same to every replica and after a restart.
func encode[T any](name string, aliases []string, value *T, marshal func(*T) (*anypb.Any, error)) (*discovery.Resource, error) {
	body, err := marshal(value)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body.Value)
	return &discovery.Resource{Name: name, Aliases: aliases, Version: hex.EncodeToString(sum[:16]), Resource: body}, nil
}

func workloadAliases(w *model.Workload) (out []string) {
	if w.HostNetwork {
		return nil
	}
	for _, a := range w.Addresses {
		out = append(out, w.Network+"/"+a.String())
	}
	return out
}

func serviceAliases(v *model.Service) (out []string) {
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			out = append(out, a.Network+"/"+a.Prefix.Addr().String())
		}
	}
	return out
}
