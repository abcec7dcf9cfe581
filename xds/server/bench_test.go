package server

import (
	"context"
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// One of 10,000 pods changes, and the proxies of 100 nodes are told.
func BenchmarkOnePodChanges(b *testing.B) {
	s := New(zap.NewNop(), func(context.Context) string { return "" })
	mesh := first(model.Update{Policies: []*model.Policy{policy("p")}})
	for i := range 10_000 {
		mesh.Workloads = append(mesh.Workloads, pod(fmt.Sprint(i), fmt.Sprintf("198.18.%d.%d", i/250, i%250), "ns/p"))
	}
	if err := s.Apply(mesh); err != nil {
		b.Fatal(err)
	}
	names := stream.NewDeltaSubscription(nil, nil, nil, true)
	var outs []chan cache.DeltaResponse
	ask := func(v *view, typeURL, nonce string, out chan cache.DeltaResponse) {
		if _, err := v.CreateDeltaWatch(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce}, &names, out); err != nil {
			b.Fatal(err)
		}
	}
	views := make([]*view, 100)
	for i := range views {
		views[i] = &view{server: s, log: zap.NewNop()}
		s.views[views[i]] = struct{}{}
		outs = append(outs, make(chan cache.DeltaResponse, 2*maxUnacknowledged))
		ask(views[i], wire.AuthorizationType, "", outs[i])
		ask(views[i], wire.AddressType, "", outs[i])
		<-outs[i]
		<-outs[i]
		ask(views[i], wire.AddressType, "nonce", outs[i])
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if err := s.Apply(model.Update{Workloads: []*model.Workload{pod("5000", fmt.Sprintf("198.19.%d.%d", n/250%250, n%250), "ns/p")}}); err != nil {
			b.Fatal(err)
		}
		for i, v := range views {
			<-outs[i]
			ask(v, wire.AddressType, "nonce", outs[i])
		}
	}
}
