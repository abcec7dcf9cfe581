package server

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

func TestOnDemand(t *testing.T) {
	const a, b, local, service = "K//Pod/ns/a", "K//Pod/ns/b", "K//Pod/ns/local", "ns/s.ns.svc.cluster.local"
	member := pod("b", "198.18.0.2")
	member.Services = map[string][]model.Port{service: {{Service: 80, Target: 8080}}}
	s := started(t, model.Update{
		Workloads: []*model.Workload{pod("a", "198.18.0.1"), member, pod("local", "198.18.0.3"), pod("other", "198.18.0.4")},
		Services:  []*model.Service{svc("s", "198.18.9.1"), svc("t", "198.18.9.2")},
	})
	c := connect(t, serve(t, s)())
	c.ask(wire.AuthorizationType, nil)
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}})
	c.ack(c.next(wire.AuthorizationType, nil, nil))
	c.ack(c.next(wire.AddressType, []string{local}, nil)) // the node's own, unasked

	ask := func(names ...string) {
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: names})
	}
	ask("/198.18.0.1")
	c.ack(c.next(wire.AddressType, []string{a}, nil))
	ask("/198.18.9.1")
	c.ack(c.next(wire.AddressType, []string{b, service}, nil))
	ask("ns/t.ns.svc.cluster.local", "/198.18.0.9", "nonsense")
	c.ack(c.next(wire.AddressType, []string{"ns/t.ns.svc.cluster.local"}, []string{"/198.18.0.9", "nonsense"}))

	// The address moves, and an unknown one appears.
	apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.9"), pod("n", "198.18.0.1"), pod("other", "198.18.0.5")}})
	c.ack(c.next(wire.AddressType, []string{a, "K//Pod/ns/n"}, nil))
	apply(t, s, model.Update{RemovedAddresses: []string{a}})
	c.ack(c.next(wire.AddressType, nil, []string{"/198.18.0.9", a}))

	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesUnsubscribe: []string{"/198.18.0.1"}})
	c.ack(c.next(wire.AddressType, nil, []string{"K//Pod/ns/n"}))
	ask("K//Pod/ns/n")
	c.ack(c.next(wire.AddressType, []string{"K//Pod/ns/n"}, nil))
}

func TestTooManyNames(t *testing.T) {
	c := connect(t, serve(t, started(t, model.Update{}))())
	names := make([]string, maxNames+1)
	for i := range names {
		names[i] = fmt.Sprint("/", i)
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: names})
	if _, ok := <-c.responses; ok {
		t.Fatal("answered")
	}
	if err := c.stream.RecvMsg(new(discovery.DeltaDiscoveryResponse)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the stream ended with %v", err)
	}
}

// A name is answered even if the proxy has all that it stands for.
func TestEachNameIsAnswered(t *testing.T) {
	const a, service = "K//Pod/ns/a", "ns/s.ns.svc.cluster.local"
	member := pod("a", "198.18.0.1")
	member.Services = map[string][]model.Port{service: {{Service: 80, Target: 8080}}}
	s := started(t, model.Update{Workloads: []*model.Workload{member}, Services: []*model.Service{svc("s", "198.18.9.1")}})
	c := connect(t, serve(t, s)())
	c.ask(wire.AuthorizationType, nil)
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: []string{"*", service, "/198.18.0.9"}, ResourceNamesUnsubscribe: []string{"*"},
		InitialResourceVersions: map[string]string{"gone": "1"}})
	c.ack(c.next(wire.AuthorizationType, nil, nil))
	c.ack(c.next(wire.AddressType, []string{a, service}, []string{"/198.18.0.9", "gone"}))
	for range 2 {
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: []string{"/198.18.0.1", "/198.18.0.9"}})
		c.ack(c.next(wire.AddressType, []string{a}, []string{"/198.18.0.9"}))
	}
	// What another name stands for stays.
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesUnsubscribe: []string{service}})
	c.ack(c.next(wire.AddressType, nil, []string{service}))
}

// What is kept up to date is what is found from nothing, and costs what changed.
func TestDemandsAreKeptUpToDate(t *testing.T) {
	names := []string{"/198.18.0.1", "/198.18.0.2", "/198.18.9.1", "/198.18.9.2", "ns/a.ns.svc.cluster.local", "K//Pod/ns/a", "K//Pod/ns/b", "nonsense", "other/198.18.0.1"}
	rapid.Check(t, func(t *rapid.T) {
		s := New(zap.NewNop(), nil)
		var d *demands
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if d == nil || rapid.Bool().Draw(t, "change") {
				if err := s.Apply(anyChange(t, d == nil)); err != nil {
					t.Fatal(err)
				}
			}
			subscribe, unsubscribe := rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, "subscribe"), rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, "unsubscribe")
			if d == nil {
				d = newDemands("node-a", map[string]struct{}{names[0]: {}})
			} else {
				d.ask(subscribe, unsubscribe)
			}
			if rapid.Bool().Draw(t, "behind") {
				continue
			}
			d.bring(s.current.Load())
			asked := map[string]struct{}{}
			for name := range d.names {
				if name != ofNode {
					asked[name] = struct{}{}
				}
			}
			fresh := newDemands("node-a", asked)
			fresh.bring(s.current.Load())
			if diff := cmp.Diff(contents(fresh.wanted.all), contents(d.wanted.all)); diff != "" {
				t.Fatalf("wanted -from nothing +kept:\n%s", diff)
			}
			absent := maps.Clone(d.untold)
			maps.Copy(absent, d.told)
			if diff := cmp.Diff(fresh.untold, absent); diff != "" {
				t.Fatalf("absent -from nothing +kept:\n%s", diff)
			}
			if rapid.Bool().Draw(t, "sent") {
				d.answered()
			}
		}
	})
}

func contents(r *resources) map[string]string {
	out := map[string]string{}
	for it := r.Iterator(); !it.Done(); {
		name, resource, _ := it.Next()
		out[name] = resource.Version
	}
	return out
}

// anyChange is one of a small mesh, in which addresses move between pods and
// services.
func anyChange(t *rapid.T, all bool) (u model.Update) {
	if all {
		u = first(u)
	}
	for _, name := range []string{"a", "b"} {
		switch rapid.IntRange(0, 3).Draw(t, name) {
		case 0:
			w := pod(name, rapid.SampledFrom([]string{"198.18.0.1", "198.18.0.2"}).Draw(t, "address"))
			w.Node = rapid.SampledFrom([]string{"node-a", "node-b"}).Draw(t, "node")
			w.HostNetwork = rapid.Bool().Draw(t, "host network")
			for _, service := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b"}), rapid.ID).Draw(t, "member of") {
				if w.Services == nil {
					w.Services = map[string][]model.Port{}
				}
				w.Services["ns/"+service+".ns.svc.cluster.local"] = []model.Port{{Service: 80, Target: 80}}
			}
			u.Workloads = append(u.Workloads, w)
		case 1:
			u.RemovedAddresses = append(u.RemovedAddresses, "K//Pod/ns/"+name)
		}
		switch rapid.IntRange(0, 3).Draw(t, "service "+name) {
		case 0:
			v := svc(name, "198.18.9.1")
			v.Addresses[0].Prefix = netip.MustParsePrefix(rapid.SampledFrom([]string{"198.18.9.1/32", "198.18.9.2/32", "198.18.9.0/24", "198.18.0.1/32"}).Draw(t, "virtual address"))
			u.Services = append(u.Services, v)
		case 1:
			u.RemovedAddresses = append(u.RemovedAddresses, "ns/"+name+".ns.svc.cluster.local")
		}
	}
	return u
}
