package client

import (
	"bytes"
	"maps"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// kind is one type of resources and those held of it, in the bytes in which
// they came: a later version of this program may read more in them.
type kind struct {
	typeURL  string
	decode   func(name string, body *anypb.Any, u *model.Update) (held bool, err error)
	remove   func(names []string, u *model.Update)
	complete func(u *model.Update)

	isComplete bool // the first full list is in
	restored   bool // or was, in an earlier process, and may have changed since
	resources  map[string]resource
	status     TypeStatus
}

// resource is one that is applied. It counts as rejected if the last that the
// server sent by its name was: then either an older one is still in force or
// one that refuses, which is a denial or is behind a waypoint of nobody.
type resource struct {
	version  string
	body     *anypb.Any
	rejected bool
}

// known is the version to tell the server: for one rejected none, which makes
// the server send it again.
func (r resource) known() string {
	if r.rejected {
		return ""
	}
	return r.version
}

// newKinds are the types of resources, policies first: a workload whose
// policy has never been seen is denied.
func newKinds(onDemand bool) []*kind {
	return []*kind{
		{
			typeURL:   wire.AuthorizationType,
			resources: map[string]resource{},
			decode:    decodePolicy,
			remove:    removePolicies,
			complete:  func(u *model.Update) { u.PoliciesComplete = true },
		},
		{
			typeURL:   wire.AddressType,
			resources: map[string]resource{},
			decode:    decodeAddress,
			remove:    removeAddresses,
			complete:  func(u *model.Update) { u.AddressesComplete, u.OnDemand = true, onDemand },
		},
	}
}

// decodePolicy adds to the update even a policy that is rejected, if it has a
// key: what was known by that name may be more permissive than what replaces
// it, so a denial takes its place.
func decodePolicy(name string, body *anypb.Any, u *model.Update) (bool, error) {
	p, err := wire.DecodePolicy(name, body)
	if p != nil {
		u.Policies = append(u.Policies, p)
	}
	return p != nil, err
}

// decodeAddress adds what is rejected for its waypoint alone: it is refused then,
// where the address of nobody would be passed through.
func decodeAddress(name string, body *anypb.Any, u *model.Update) (bool, error) {
	w, v, err := wire.DecodeAddress(name, body)
	switch {
	case w != nil:
		u.Workloads = append(u.Workloads, w)
	case v != nil:
		u.Services = append(u.Services, v)
	}
	return w != nil || v != nil, err
}

// removePolicies takes from the update what an earlier response put there: an
// update removes before it adds.
func removePolicies(names []string, u *model.Update) {
	u.Policies = without(u.Policies, names, (*model.Policy).Key)
	u.RemovedPolicies = append(u.RemovedPolicies, names...)
}

func removeAddresses(names []string, u *model.Update) {
	u.Workloads = without(u.Workloads, names, func(w *model.Workload) string { return w.UID })
	u.Services = without(u.Services, names, (*model.Service).Key)
	u.RemovedAddresses = append(u.RemovedAddresses, names...)
}

func without[T any](list []*T, names []string, key func(*T) string) []*T {
	if len(list) == 0 {
		return list
	}
	gone := make(map[string]bool, len(names))
	for _, name := range names {
		gone[name] = true
	}
	return slices.DeleteFunc(list, func(v *T) bool { return gone[key(v)] })
}

// accept adds a response to an update, and returns an error for each resource
// that is rejected.
func (k *kind) accept(response *discovery.DeltaDiscoveryResponse, u *model.Update) (rejected []error) {
	k.status.came(response)
	if removed := response.GetRemovedResources(); len(removed) > 0 {
		for _, name := range removed {
			delete(k.resources, name)
		}
		k.remove(removed, u)
	}
	for _, r := range response.GetResources() {
		if err := k.set(r.GetName(), r.GetVersion(), r.GetResource(), u); err != nil {
			rejected = append(rejected, err)
		}
	}
	k.markComplete(u)
	return rejected
}

func (k *kind) set(name, version string, body *anypb.Any, u *model.Update) error {
	old, held := k.resources[name]
	if held && !old.rejected && sameBody(old.body, body) {
		k.resources[name] = resource{version: version, body: old.body}
		return nil // sent again: nothing has changed
	}
	applied, err := k.decode(name, body, u)
	switch {
	case applied:
		k.resources[name] = resource{version, body, err != nil}
	case held:
		k.resources[name] = resource{old.version, old.body, true}
	}
	return err
}

func sameBody(a, b *anypb.Any) bool {
	return a.GetTypeUrl() == b.GetTypeUrl() && bytes.Equal(a.GetValue(), b.GetValue())
}

func (k *kind) markComplete(u *model.Update) {
	if !k.isComplete {
		k.isComplete = true
		k.complete(u)
	}
}

// versions are those held, for the server to send only what differs.
func (k *kind) versions() map[string]string {
	out := make(map[string]string, len(k.resources))
	for name, r := range k.resources {
		out[name] = r.known()
	}
	return out
}

func (k *kind) export() *tacit.SavedType {
	out := &tacit.SavedType{TypeUrl: k.typeURL, Complete: k.isComplete || k.restored}
	for _, name := range slices.Sorted(maps.Keys(k.resources)) {
		r := k.resources[name]
		out.Resources = append(out.Resources, &tacit.SavedResource{Name: name, Version: r.known(), Resource: r.body})
	}
	return out
}

// restore takes in what an earlier process exported. That process may have
// been of another version of this program: what this one cannot read it does
// not hold, so that the server sends it again.
func (k *kind) restore(saved *tacit.SavedType, u *model.Update) (rejected []error) {
	for _, r := range saved.GetResources() {
		if err := k.set(r.GetName(), r.GetVersion(), r.GetResource(), u); err != nil {
			rejected = append(rejected, err)
		}
	}
	k.restored = wasComplete(saved)
	return rejected
}
