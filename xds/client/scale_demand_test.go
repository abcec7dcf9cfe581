package client

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
	xdsserver "github.com/tacit-mesh/tacit/xds/server"
)

// BenchmarkScaleOnDemand says what a mesh of a million workloads costs a proxy
// that is sent what its pods talk to, 100 services of 10 workloads each: memory,
// the time from a connection to a new name to the answer (per operation), and to
// hear of everything again after an outage of the control plane.
//
//	go test -run '^$' -bench ScaleOnDemand -benchtime 1000x ./xds/client
func BenchmarkScaleOnDemand(b *testing.B) {
	const workloads, talksTo = 1_000_000, 100
	metrics := map[string]float64{} // reported at the end: Loop forgets those from before
	defer func() {
		for unit, value := range metrics {
			b.ReportMetric(value, unit)
		}
	}()
	empty := heap()
	p := &controlPlane{Server: xdsserver.New(zap.NewNop(), func(context.Context) string { return "node-7" }), ca: newAuthority(b), address: "127.0.0.1:0"}
	p.cert = grpc.Creds(credentials.NewServerTLSFromCert(new(p.ca.server(b))))
	if err := p.Apply(scaleMesh(workloads)); err != nil {
		b.Fatal(err)
	}
	p.start(b)
	defer func() { p.stop() }()
	full := heap()
	metrics["control-B/workload"] = (full - empty) / workloads

	roots := filepath.Join(b.TempDir(), "roots")
	if err := os.WriteFile(roots, p.ca.pem(), 0o600); err != nil {
		b.Fatal(err)
	}
	sink := state.New()
	ctx, cancel := context.WithCancel(b.Context())
	client := New(Config{Server: p.address, ServerName: serverName, RootsFile: roots, Sink: sink, OnDemand: true, Known: sink.Snapshot, Node: Node{Name: "node-7"}})
	ended := make(chan error)
	go func() { ended <- client.Run(ctx) }()
	defer func() { cancel(); <-ended }()
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
	metrics["proxy+stream-MB"] = (heap() - full) / 1e6
	held := float64(client.Status().Addresses.Resources)

	for b.Loop() {
		ask()
	}
	p.stop()
	w := scaleWorkload(perService)
	w.Node = "moved"
	if err := p.Apply(model.Update{Workloads: []*model.Workload{w}}); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	p.start(b)
	await(func(s *model.Snapshot) bool { return s.Workload(w.UID).Node == w.Node })
	metrics["resync-ms"] = float64(time.Since(began).Microseconds()) / 1e3
	metrics["resources-held"] = held
}

func vipOf(service int) netip.Addr { return scaleService(service).Addresses[0].Prefix.Addr() }
