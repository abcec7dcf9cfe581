package server

import (
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
