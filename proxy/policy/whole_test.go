package policy_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/server"
)

// A proxy decides by meshes that there have been and by nothing in between,
// however many objects change at once and whenever the connection to the
// control plane breaks: so no change opens a window, and none denies for a
// moment what is allowed before and after.
func TestChangesOpenNoWindowAndDenyNothingThatStaysAllowed(t *testing.T) {
	defer goleak.VerifyNone(t)
	pair := httptest.NewTLSServer(nil) // for its certificate
	defer pair.Close()
	roots := filepath.Join(t.TempDir(), "roots")
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate().Raw})
	if err := os.WriteFile(roots, content, 0o600); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		p := &controlPlane{t: t, cluster: newCluster(), ads: server.New(zap.NewNop(), func(context.Context) string { return "n" }), pair: pair.TLS}
		f := &follower{snapshot: model.NewSnapshot(), arrived: make(chan int, 1000), want: map[int]map[string]policy.Decision{}}
		p.change(rapid.IntRange(0, 8).Draw(t, "earlier changes"), f)
		p.start("127.0.0.1:0")
		defer func() { p.stop() }()
		follow := client.New(client.Config{Server: p.address, ServerName: "example.com", RootsFile: roots, Sink: f, Node: client.Node{Name: "n"}})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- follow.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		p.await(f)
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			cut := rapid.IntRange(0, 4).Draw(t, "cut") == 0
			if cut {
				p.stop()
			}
			for range rapid.IntRange(1, 3).Draw(t, "rebuilds") {
				p.change(rapid.IntRange(1, 4).Draw(t, "objects"), f)
			}
			if cut {
				p.start(p.address)
			}
			p.await(f)
		}
	})
}

// controlPlane serves one mesh after the other, each numbered by a service.
type controlPlane struct {
	t       *rapid.T
	cluster *cluster
	ads     *server.Server
	pair    *tls.Config
	result  *build.Result
	number  int

	address string
	stop    func()
}

func (p *controlPlane) change(objects int, f *follower) {
	for range objects {
		p.cluster.change(p.t)
	}
	p.number++
	now := p.cluster.build()
	now.Services = []*model.Service{{Namespace: "ns", Hostname: "number", SANs: []string{strconv.Itoa(p.number)}}}
	f.expect(p.number, p.cluster, now)
	if err := p.ads.Apply(now.Since(p.result)); err != nil {
		p.t.Fatal(err)
	}
	p.result = now
}

func (p *controlPlane) start(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.address = l.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: p.pair.Certificates, MinVersion: tls.VersionTLS13})))
	discovery.RegisterAggregatedDiscoveryServiceServer(g, p.ads)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	p.stop = func() { g.Stop(); <-served }
}

// await waits for the newest mesh.
func (p *controlPlane) await(f *follower) {
	timeout := time.After(20 * time.Second)
	for {
		select {
		case number := <-f.arrived:
			if err := f.err(); err != nil {
				p.t.Fatal(err)
			}
			if number == p.number {
				return
			}
		case <-timeout:
			p.t.Fatalf("mesh %d never came", p.number)
		}
	}
}

// follower is a proxy that decides every request after each update.
type follower struct {
	arrived chan int // numbers of meshes

	mu       sync.Mutex
	snapshot *model.Snapshot
	want     map[int]map[string]policy.Decision
	failure  error
}

// expect notes the decisions by a mesh, as of one who knows nothing else.
func (f *follower) expect(number int, c *cluster, r *build.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want[number] = c.outcomes(model.NewSnapshot().Apply(r.Since(nil)))
}

// Apply is called by the xDS client.
func (f *follower) Apply(u model.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snapshot = f.snapshot.Apply(u)
	number := 0
	if v := f.snapshot.Service("ns/number"); v != nil {
		number, _ = strconv.Atoi(v.SANs[0])
	}
	got, want := newCluster().outcomes(f.snapshot), f.want[number]
	if !maps.EqualFunc(got, want, func(x, y policy.Decision) bool { return x.Allowed == y.Allowed }) && f.failure == nil {
		f.failure = fmt.Errorf("with mesh %d, after %+v: %v, want %v", number, u, got, want)
	}
	f.arrived <- number
}

func (f *follower) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failure
}
