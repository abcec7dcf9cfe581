package client

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/model/modeltest"
)

// BenchmarkScaleOnDemand says what a mesh of a million workloads costs a proxy
// that is sent what its pods talk to, 100 services of 10 workloads each: memory,
// the time from a connection to a new name to the answer (per operation), and to
// hear of everything again after an outage of the control plane.
//
//	go test -run '^$' -bench ScaleOnDemand -benchtime 1000x ./xds/client
func BenchmarkScaleOnDemand(b *testing.B) {
	const workloads, talksTo = 1_000_000, 100
	noted := figures{}
	defer noted.report(b)
	p, sink, client, full := scaled(b, workloads, true, noted)
	client.follow(b)
	<-client.Ready()
	await := func(ok func(*model.Snapshot) bool) {
		if _, err := sink.Wait(b.Context(), ok); err != nil {
			b.Fatal(err)
		}
	}
	asked := 0
	ask := func() {
		asked++
		name := model.AddressName("", vipOf(asked))
		if _, ok := client.Hold(name); !ok {
			b.Fatal("no room")
		}
		await(func(s *model.Snapshot) bool { return s.Heard(name) })
	}
	for range talksTo {
		ask()
	}
	noted["proxy+stream-MB"] = (heap() - full) / 1e6
	held := float64(client.Status().Addresses.Resources)

	for b.Loop() {
		ask()
	}
	p.stop()
	w := modeltest.Workload(modeltest.PerService)
	w.Node = "moved"
	if err := p.Apply(model.Update{Workloads: []*model.Workload{w}}); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	p.start(b)
	await(func(s *model.Snapshot) bool { return s.Workload(w.UID).Node == w.Node })
	noted["resync-ms"] = float64(time.Since(began).Microseconds()) / 1e3
	noted["resources-held"] = held
}

func vipOf(service int) netip.Addr { return modeltest.Service(service).Addresses[0].Prefix.Addr() }
