package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// proxy is a stream's far end that acknowledges when it is told to.
type proxy struct {
	t         *rapid.T
	view      *view
	out       chan cache.DeltaResponse
	unacked   []string // types
	policies  map[string]string
	addresses map[string]*model.Workload
	// whole are the meshes that there have been, by generation.
	whole map[string]string
	// partial says that more responses of the same change follow.
	partial bool
}

func newProxy(t *rapid.T, s *Server) *proxy {
	p := &proxy{
		t: t, view: &view{server: s, log: zap.NewNop()}, out: make(chan cache.DeltaResponse, 2*maxUnacknowledged),
		policies: map[string]string{}, addresses: map[string]*model.Workload{}, whole: map[string]string{},
	}
	s.views[p.view] = struct{}{}
	return p
}

func (p *proxy) ask(typeURL, nonce string) {
	names := stream.NewDeltaSubscription(nil, nil, nil, true)
	if _, err := p.view.CreateDeltaWatch(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce}, &names, p.out); err != nil {
		p.t.Fatal(err)
	}
	p.receive()
}

// receive applies what has arrived, in order.
func (p *proxy) receive() {
	for {
		select {
		case r := <-p.out:
			response, _ := r.GetDeltaDiscoveryResponse()
			p.take(response)
			p.unacked = append(p.unacked, response.TypeUrl)
		default:
			return
		}
	}
}

// take checks that no workload ever names a policy that is not there, and
// that a change that came whole leads to a mesh that there has been.
func (p *proxy) take(r *discovery.DeltaDiscoveryResponse) {
	for _, name := range r.RemovedResources {
		if r.TypeUrl == wire.AddressType {
			delete(p.addresses, name)
		} else {
			delete(p.policies, name)
		}
	}
	for _, x := range r.Resources {
		if r.TypeUrl == wire.AuthorizationType {
			p.policies[x.Name] = x.Version
			continue
		}
		w, _, err := wire.DecodeAddress(x.Name, x.Resource)
		if err != nil {
			p.t.Fatal(err)
		}
		p.addresses[x.Name] = w
	}
	for _, w := range p.addresses {
		for _, key := range w.Policies {
			if _, ok := p.policies[key]; !ok {
				p.t.Fatalf("%s names %s, which is not there", w.UID, key)
			}
		}
	}
	p.partial = wire.MoreFollows(r.SystemVersionInfo)
	if want := p.whole[r.SystemVersionInfo]; !p.partial && p.describe() != want {
		p.t.Fatalf("with all of generation %s:\n%s\nwant\n%s", r.SystemVersionInfo, p.describe(), want)
	}
}

func (p *proxy) describe() string {
	var b strings.Builder
	for _, uid := range slices.Sorted(maps.Keys(p.addresses)) {
		fmt.Fprintln(&b, uid, p.addresses[uid].Policies)
	}
	return b.String() + describePolicies(p.policies)
}

func describePolicies(versions map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		fmt.Fprintln(&b, name, versions[name])
	}
	return b.String()
}

// describe is the same of all that a server has.
func describe(s *state) string {
	var b strings.Builder
	for _, w := range slices.SortedFunc(slices.Values(s.snapshot.Workloads()), func(x, y *model.Workload) int { return strings.Compare(x.UID, y.UID) }) {
		fmt.Fprintln(&b, w.UID, w.Policies)
	}
	versions := map[string]string{}
	for it := s.policies[wire.DialectFull].all.Iterator(); !it.Done(); {
		name, r, _ := it.Next()
		versions[name] = r.Version
	}
	return b.String() + describePolicies(versions)
}

// Whatever changes, several objects at once included, and however slow the
// proxy is: it gets whole generations, nothing ever names what is not there
// yet, and in the end it has everything.
func TestOrderHoldsForAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(zap.NewNop(), func(context.Context) string { return "" })
		p := newProxy(t, s)
		mesh, actions := map[string][]string{}, map[string]model.Action{} // workload -> policies; policy -> action
		change := func(t *rapid.T) {
			for range rapid.IntRange(1, 3).Draw(t, "objects") {
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "workload")
				mesh[name] = rapid.SliceOfDistinct(rapid.SampledFrom([]string{"p", "q", "r", "s"}), rapid.ID).Draw(t, "policies")
				if rapid.Bool().Draw(t, "gone") {
					delete(mesh, name)
				}
				actions[rapid.SampledFrom([]string{"p", "q", "r", "s"}).Draw(t, "policy")] = model.Action(rapid.IntRange(0, 1).Draw(t, "action"))
			}
			if err := s.Apply(updateTo(s.current.Load(), mesh, actions)); err != nil {
				t.Fatal(err)
			}
			now := s.current.Load()
			p.whole[wire.VersionInfo(now.generation, false)] = describe(now)
			p.receive()
		}
		acknowledge := func(t *rapid.T) {
			if len(p.unacked) == 0 {
				t.Skip("nothing to acknowledge")
			}
			i := rapid.IntRange(0, len(p.unacked)-1).Draw(t, "which")
			typeURL := p.unacked[i]
			p.unacked = slices.Delete(p.unacked, i, i+1)
			p.ask(typeURL, "nonce")
		}
		change(t)
		order := rapid.Permutation([]string{wire.AddressType, wire.AuthorizationType}).Draw(t, "order")
		p.ask(order[0], "")
		p.ask(order[1], "")
		t.Repeat(map[string]func(*rapid.T){"change": change, "acknowledge": acknowledge})
		for len(p.unacked) > 0 {
			acknowledge(t)
		}
		if got, want := p.describe(), describe(s.current.Load()); p.partial || got != want {
			t.Fatalf("in the end (more to follow: %v):\n%s\nwant\n%s", p.partial, got, want)
		}
	})
}

// A proxy that acknowledges nothing for long gets everything in the end, in
// few responses.
func TestSlowProxy(t *testing.T) {
	const changes = 300
	s := started(t, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.0")}})
	v := &view{server: s, log: zap.NewNop()}
	s.views[v] = struct{}{}
	out := make(chan cache.DeltaResponse, 2*maxUnacknowledged)
	ask := func(typeURL, nonce string) {
		names := stream.NewDeltaSubscription(nil, nil, nil, true)
		if _, err := v.CreateDeltaWatch(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce}, &names, out); err != nil {
			t.Fatal(err)
		}
	}
	ask(wire.AuthorizationType, "")
	ask(wire.AddressType, "")
	<-out // of policies there are none
	for i := range changes {
		apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", fmt.Sprintf("198.18.%d.%d", 1+i/250, i%250))}})
	}
	got, last := 0, (*discovery.DeltaDiscoveryResponse)(nil)
	for len(out) > 0 {
		r := <-out
		last, _ = r.GetDeltaDiscoveryResponse()
		got++
		ask(wire.AddressType, "nonce")
	}
	if got != maxUnacknowledged+1 {
		t.Errorf("%d responses, want %d", got, maxUnacknowledged+1)
	}
	if want, _ := s.current.Load().addresses.all.Get("K//Pod/ns/a"); last.Resources[0].Version != want.Version {
		t.Error("the last response is not the last version")
	}
}

// updateTo leads to exactly these workloads and the policies that they name.
func updateTo(now *state, mesh map[string][]string, actions map[string]model.Action) model.Update {
	u := first(model.Update{})
	named := map[string]bool{}
	for name, policies := range mesh {
		var keys []string
		for _, p := range policies {
			keys = append(keys, "ns/"+p)
			if !named["ns/"+p] {
				named["ns/"+p] = true
				u.Policies = append(u.Policies, policy(p))
				u.Policies[len(u.Policies)-1].Action = actions[p]
			}
		}
		u.Workloads = append(u.Workloads, pod(name, fmt.Sprintf("198.18.0.%d", name[0]), keys...))
	}
	for _, w := range now.snapshot.Workloads() {
		if _, ok := mesh[w.Name]; !ok {
			u.RemovedAddresses = append(u.RemovedAddresses, w.UID)
		}
	}
	for _, p := range now.snapshot.Policies() {
		if !named[p.Key()] {
			u.RemovedPolicies = append(u.RemovedPolicies, p.Key())
		}
	}
	return u
}
