package server

import (
	"context"
	"fmt"
	"runtime"
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

// A pod of one of 1,000 services changes, and of 200 proxies that have asked for
// a hundred services each, those are told that have asked for this one.
func BenchmarkOnePodChangesOnDemand(b *testing.B) {
	const services, each, streams, asked = 1_000, 10, 200, 100
	s := New(zap.NewNop(), func(context.Context) string { return "" })
	member := func(i int, address string) *model.Workload {
		w := pod(fmt.Sprint(i), address)
		w.Services = map[string][]model.Port{svc(fmt.Sprint("s", i/each), "198.19.0.1").Key(): {{Service: 80, Target: 8080}}}
		return w
	}
	mesh := first(model.Update{})
	for i := range services * each {
		mesh.Workloads = append(mesh.Workloads, member(i, fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)))
	}
	for i := range services {
		mesh.Services = append(mesh.Services, svc(fmt.Sprint("s", i), fmt.Sprintf("11.0.%d.%d", i>>8, i&255)))
	}
	if err := s.Apply(mesh); err != nil {
		b.Fatal(err)
	}
	before := heap()
	outs := make([]chan cache.DeltaResponse, streams)
	ask := func(v *view, names stream.Subscription, typeURL, nonce string, out chan cache.DeltaResponse) {
		if _, err := v.CreateDeltaWatch(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce}, &names, out); err != nil {
			b.Fatal(err)
		}
	}
	views, wants := make([]*view, streams), make([]stream.Subscription, streams)
	for i := range views {
		names := []string{"*"}
		for n := range asked {
			names = append(names, svc(fmt.Sprint("s", (i*asked+n)%services), "198.19.0.1").Key())
		}
		wants[i] = stream.NewDeltaSubscription(names, []string{"*"}, nil, true)
		views[i], outs[i] = &view{server: s, log: zap.NewNop()}, make(chan cache.DeltaResponse, 2*maxUnacknowledged)
		s.views[views[i]] = struct{}{}
		ask(views[i], stream.NewDeltaSubscription(nil, nil, nil, true), wire.AuthorizationType, "", outs[i])
		ask(views[i], wants[i], wire.AddressType, "", outs[i])
		<-outs[i]
		<-outs[i]
		ask(views[i], wants[i], wire.AddressType, "nonce", outs[i])
	}
	after := heap()
	told := 0
	for n := 0; b.Loop(); n++ {
		if err := s.Apply(model.Update{Workloads: []*model.Workload{member(n*each%(services*each), fmt.Sprintf("12.%d.%d.%d", n>>16, n>>8&255, n&255))}}); err != nil {
			b.Fatal(err)
		}
		for i, v := range views {
			select {
			case <-outs[i]:
				told++
				ask(v, wants[i], wire.AddressType, "nonce", outs[i])
			default:
			}
		}
	}
	b.ReportMetric((after-before)/streams/1e3, "KB/stream")
	b.ReportMetric(float64(told)/float64(b.N), "told/op")
}

// heap is what is in use after a collection, in bytes.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
