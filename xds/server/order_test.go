package server

import (
	"context"
	"fmt"
	"slices"
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
}

func (p *proxy) ask(typeURL, nonce string) {
	names := stream.NewDeltaSubscription(nil, nil, nil, true)
	if _, err := p.view.CreateDeltaWatch(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce}, &names, p.out); err != nil {
		p.t.Fatal(err)
	}
	p.receive()
}

// receive applies what has arrived, in order, and checks after each response
// that no workload names a policy that is not there.
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
}

// Whatever changes and however slow the proxy is, no workload ever names a
// policy that the proxy does not have, and in the end it has everything.
func TestOrderHoldsForAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(zap.NewNop(), func(context.Context) string { return "" })
		p := &proxy{t: t, out: make(chan cache.DeltaResponse, 2*maxUnacknowledged), policies: map[string]string{}, addresses: map[string]*model.Workload{}}
		p.view = &view{server: s, log: zap.NewNop()}
		s.views[p.view] = struct{}{}
		mesh := map[string][]string{} // workload -> policies
		change := func(t *rapid.T) {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "workload")
			mesh[name] = rapid.SliceOfDistinct(rapid.SampledFrom([]string{"p", "q", "r", "s"}), rapid.ID).Draw(t, "policies")
			if rapid.Bool().Draw(t, "gone") {
				delete(mesh, name)
			}
			if err := s.Apply(updateTo(s.current.Load(), mesh)); err != nil {
				t.Fatal(err)
			}
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
		if got, want := len(p.addresses), len(mesh); got != want {
			t.Fatalf("%d workloads in the end, want %d", got, want)
		}
		if got, want := len(p.policies), s.current.Load().policies.all.Len(); got != want {
			t.Fatalf("%d policies in the end, want %d", got, want)
		}
	})
}

// A proxy that acknowledges nothing for long gets everything in the end, and
// the stages of a change one by one unless it is very far behind.
func TestSlowProxy(t *testing.T) {
	for _, test := range []struct {
		name    string
		changes int
		want    int // responses with addresses
	}{
		{"goes through every stage", maxLag, 1 + maxLag},
		{"skips what it missed long ago", 2 * maxLag, maxUnacknowledged + 1},
	} {
		t.Run(test.name, func(t *testing.T) {
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
			<-out
			ask(wire.AddressType, "")
			for i := range test.changes {
				apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", fmt.Sprintf("198.18.%d.%d", 1+i/250, i%250))}})
			}
			got, last := 0, (*discovery.DeltaDiscoveryResponse)(nil)
			for len(out) > 0 {
				r := <-out
				last, _ = r.GetDeltaDiscoveryResponse()
				got++
				ask(wire.AddressType, "nonce")
			}
			if got != test.want {
				t.Errorf("%d responses, want %d", got, test.want)
			}
			if want, _ := s.current.Load().addresses.all.Get("K//Pod/ns/a"); last.Resources[0].Version != want.Version {
				t.Error("the last response is not the last version")
			}
		})
	}
}

// updateTo leads to exactly these workloads and the policies that they name.
func updateTo(now *state, mesh map[string][]string) model.Update {
	u := first(model.Update{})
	named := map[string]bool{}
	for name, policies := range mesh {
		var keys []string
		for _, p := range policies {
			named["ns/"+p] = true
			keys = append(keys, "ns/"+p)
			u.Policies = append(u.Policies, policy(p))
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
