package client

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/model/modeltest"
	xdsserver "github.com/tacit-mesh/tacit/xds/server"
)

// heap is what is in use after a collection, in bytes.
func heap() float64 {
	runtime.GC()
	runtime.GC() // what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// prober makes round trips on loopback, one after the other, as connections
// through the proxy would beside it.
type prober struct{ longest atomic.Int64 }

func newProber(b *testing.B) *prober {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 64)
		for {
			n, err := c.Read(buf)
			if err != nil {
				_ = c.Close()
				return
			}
			_, _ = c.Write(buf[:n])
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _, _ = c.Close(), l.Close() })
	p := &prober{}
	go func() {
		buf := make([]byte, 64)
		for {
			began := time.Now()
			if _, err := c.Write(buf); err != nil {
				return
			}
			if _, err := c.Read(buf); err != nil {
				return
			}
			p.longest.Store(max(p.longest.Load(), int64(time.Since(began))))
			<-time.After(100 * time.Microsecond)
		}
	}()
	return p
}

// during is the longest round trip while something happens.
func (p *prober) during(do func()) (ms float64) {
	p.longest.Store(0)
	do()
	return float64(p.longest.Load()) / 1e6
}

// controlPlane is tacitd's server of the protocol, which can be restarted.
type controlPlane struct {
	*xdsserver.Server
	ca      *authority
	cert    grpc.ServerOption
	address string
	opened  atomic.Int64 // when the last stream began
	stop    func()
}

func (p *controlPlane) start(b *testing.B) {
	b.Helper()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		b.Fatal(err)
	}
	p.address = l.Addr().String()
	g := grpc.NewServer(p.cert, grpc.MaxRecvMsgSize(maxMessage), grpc.StreamInterceptor(func(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		p.opened.Store(time.Now().UnixNano())
		return next(s, ss)
	}))
	discovery.RegisterAggregatedDiscoveryServiceServer(g, p)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	p.stop = func() { g.Stop(); <-served }
}

// BenchmarkScale says what a mesh of many workloads costs a proxy: memory, the
// time to hear of everything, of one change, and of what changed during an
// outage, and how late everything else in the process gets meanwhile. Control
// plane and proxy share a process here, and so do their garbage collections:
// the latencies are upper bounds.
//
//	go test -run '^$' -bench Scale -benchtime 1000x ./xds/client
func BenchmarkScale(b *testing.B) {
	// More than 450,000 do not fit into one response, see maxMessage.
	for _, n := range []int{10_000, 100_000, 400_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { scale(b, n) })
	}
}

// figures are reported at the end: Loop forgets those from before.
type figures map[string]float64

func (f figures) report(b *testing.B) {
	for unit, value := range f {
		b.ReportMetric(value, unit)
	}
}

// scaled is a control plane of a mesh of n workloads, of which it notes what one
// takes, and a proxy's client of it, not yet running, with where that leaves what
// it is sent. full is the heap before there was a client.
func scaled(b *testing.B, n int, onDemand bool, noted figures) (p *controlPlane, sink *state.State, client *Client, full float64) {
	empty := heap()
	p = &controlPlane{Server: xdsserver.New(zap.NewNop(), func(context.Context) string { return "node-7" }), ca: newAuthority(b), address: "127.0.0.1:0"}
	p.cert = grpc.Creds(credentials.NewServerTLSFromCert(new(p.ca.server(b))))
	if err := p.Apply(modeltest.Mesh(n)); err != nil {
		b.Fatal(err)
	}
	p.start(b)
	b.Cleanup(func() { p.stop() })
	full = heap()
	noted["control-B/workload"] = (full - empty) / float64(n)

	roots := filepath.Join(b.TempDir(), "roots")
	if err := os.WriteFile(roots, p.ca.pem(), 0o600); err != nil {
		b.Fatal(err)
	}
	sink = state.New()
	client = New(Config{Server: p.address, ServerName: serverName, RootsFile: roots, Sink: sink, OnDemand: onDemand, Known: sink.Snapshot, Node: Node{Name: "node-7"}})
	return p, sink, client, full
}

// follow runs the client until the end of the benchmark.
func (c *Client) follow(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-ended })
}

func scale(b *testing.B, n int) {
	noted := figures{}
	defer noted.report(b)
	note := func(value float64, unit string) { noted[unit] = value }
	p, sink, client, full := scaled(b, n, false, noted)
	probes := newProber(b)
	note(probes.during(func() { <-time.After(time.Second) }), "quiet-ms")
	await := func(ok func(*model.Snapshot) bool) time.Time {
		if _, err := sink.Wait(b.Context(), ok); err != nil {
			b.Fatal(err)
		}
		return time.Now()
	}
	since := func(at time.Time) float64 { return float64(at.UnixNano()-p.opened.Load()) / 1e9 }
	has := func(w *model.Workload) func(*model.Snapshot) bool {
		return func(s *model.Snapshot) bool { return s.Workload(w.UID) != nil && s.Workload(w.UID).Node == w.Node }
	}
	note(probes.during(func() {
		client.follow(b)
		note(since(await(has(modeltest.Workload(n-1)))), "first-s")
	}), "first-longest-ms")
	note((heap()-full)/float64(n), "proxy-B/workload")

	changes := 0
	change := func() *model.Workload {
		changes++
		w := modeltest.Workload(changes % n)
		w.Node = fmt.Sprint("moved-", changes)
		if err := p.Apply(model.Update{Workloads: []*model.Workload{w}}); err != nil {
			b.Fatal(err)
		}
		return w
	}
	note(probes.during(func() {
		for b.Loop() {
			await(has(change()))
		}
	}), "change-longest-ms")

	p.stop()
	w := change()
	note(probes.during(func() {
		p.start(b)
		note(since(await(has(w))), "resync-s")
	}), "resync-longest-ms")
}
