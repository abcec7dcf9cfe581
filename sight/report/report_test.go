package report

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/xds/api/sight"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 30 * time.Second
	token    = "0123456789abcdef0123456789abcdef"
)

var web, api = flows.Party{Namespace: "web", Name: "frontend"}, flows.Party{Namespace: "shop", Name: "api"}

func workload(p flows.Party) *model.Workload {
	return &model.Workload{
		Namespace: p.Namespace, Name: p.Name + "-1", WorkloadName: p.Name, ServiceAccount: p.Name, TrustDomain: model.DefaultTrustDomain, Protocol: model.ProtocolHBONE,
	}
}

func event(i int, edits ...func(*flows.Event)) *flows.Event {
	from, to := workload(web), workload(api)
	e := &flows.Event{
		Kind: flows.Ended, ID: fmt.Sprintf("%032x", i), Inbound: true, Security: "mtls", Outcome: "ok", Began: time.Now(), Time: time.Now(),
		Sent: 10, Received: 20, Added: time.Millisecond, Policy: "shop/web-only", Matched: true,
		Source:      flows.End{Addr: netip.MustParseAddrPort("198.18.1.1:40000"), Workload: from, Identity: from.Identity()},
		Destination: flows.End{Addr: netip.MustParseAddrPort("198.18.2.1:8080"), Workload: to, Identity: to.Identity()},
	}
	for _, edit := range edits {
		edit(e)
	}
	return e
}

func denied(e *flows.Event) {
	e.Outcome, e.Policy, e.Reason, e.Matched = "denied", "shop/web-only", "not_allowed", false
}

// control is a tacitd as far as reports go, on an address that stays.
type control struct {
	t           *testing.T
	certificate tls.Certificate
	config      caclient.Config
	hour        *hour.Hour
	service     *hour.Service
}

// node is who has the token.
func node(ctx context.Context) string {
	if header, _ := metadata.FromIncomingContext(ctx); len(header["authorization"]) == 1 && header["authorization"][0] == "Bearer "+token {
		return "n1"
	}
	return ""
}

func newControl(t *testing.T) *control {
	t.Helper()
	issuer := httptest.NewTLSServer(nil)
	defer issuer.Close()
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	h := hour.New()
	return &control{
		t: t, certificate: issuer.TLS.Certificates[0], hour: h,
		service: &hour.Service{Hour: h, Interval: time.Millisecond, Log: zap.NewNop(), Node: node},
		config: caclient.Config{
			ServerName: "example.com", TokenFile: write("token", []byte(token)),
			RootsFile: write("root", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Certificate().Raw})),
		},
	}
}

// start serves on an address, and returns it and how to stop.
func (c *control) start(address string) (at string, stop func()) {
	c.t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&c.certificate)))
	sight.RegisterSightServer(server, c.service)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return listener.Addr().String(), func() {
		server.Stop()
		if err := <-ended; err != nil {
			c.t.Error(err)
		}
	}
}

// await waits until what was told of the last minutes is as wanted.
func (c *control) await(what string, ok func(map[flows.PairKey]flows.Counts) bool) {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		news := c.hour.News()
		seen := map[flows.PairKey]flows.Counts{}
		for _, p := range c.hour.Between(time.Now().Add(-10*time.Minute), time.Now().Add(time.Minute)).Pairs {
			seen[p.PairKey] = p.Counts
		}
		if ok(seen) {
			return
		}
		select {
		case <-news:
		case <-deadline:
			c.t.Fatalf("not told of %s: %+v", what, seen)
		}
	}
}

func (c *control) run(r *Reporter) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			c.t.Errorf("the reporter ends with %v", err)
		}
	}
}

func noRoots() [][]*x509.Certificate { return nil }

func reporter(c *control, address string, log *flows.Log) *Reporter {
	server := c.config
	server.Address = address
	return &Reporter{
		Server: server, Flows: log, Live: noneLive, Roots: noRoots, Log: zap.NewNop(),
		Certificates: func() []admin.Certificate {
			return []admin.Certificate{{Identity: "spiffe://cluster.local/ns/shop/sa/api", NotAfter: time.Unix(1e9, 0)}}
		},
	}
}

var mtls = flows.PairKey{Direction: "inbound", Source: web, Destination: api, Security: "mtls"}

// Everything that was counted arrives once, across an outage of the network too.
func TestReports(t *testing.T) {
	c := newControl(t)
	log := flows.New(1000, time.Now())
	for i := range 5 {
		log.Add(event(i))
	}
	log.Add(event(5, denied))
	address, stop := c.start("127.0.0.1:0")
	r := reporter(c, address, log)
	live := event(6, func(e *flows.Event) { e.Kind, e.Sent = flows.Live, 1000 })
	r.Live = func() iter.Seq[flows.Event] { return slices.Values([]flows.Event{*live}) }
	defer c.run(r)()
	c.await("what was before it began", func(seen map[flows.PairKey]flows.Counts) bool {
		n := seen[mtls]
		return n.Connections == 5 && n.Denied == 1 && n.Sent == 1060 && n.Live == 1 && n.Latency[4] == 5
	})
	if uses := c.hour.Uses(nil, time.Now()); uses["shop/web-only"].IsZero() {
		t.Errorf("policies that decided: %v", uses)
	}
	if all := c.hour.Certificates("spiffe://cluster.local/ns/shop/sa/api"); len(all) != 1 || all[0].Node != "n1" || !all[0].NotAfter.Equal(time.Unix(1e9, 0)) {
		t.Errorf("certificates: %+v", all)
	}
	stop()
	for i := range 3 {
		log.Add(event(10 + i))
	}
	log.Add(event(20, denied))
	_, stop = c.start(address)
	defer stop()
	c.await("what was in the outage", func(seen map[flows.PairKey]flows.Counts) bool { return seen[mtls].Connections >= 8 })
	log.Add(event(30))
	c.await("what came after", func(seen map[flows.PairKey]flows.Counts) bool { return seen[mtls].Connections >= 9 })
	c.await("all once", func(seen map[flows.PairKey]flows.Counts) bool {
		return seen[mtls].Connections == 9 && seen[mtls].Denied == 2 && seen[mtls].Live == 1
	})
	denials := c.hour.Denials(api, time.Now())
	if len(denials) != 2 || denials[1].ID != event(5).ID || denials[0].Policy != "shop/web-only" || denials[0].DestinationAddress != "198.18.2.1:8080" {
		t.Errorf("denials: %+v", denials)
	}
}

// More pairs than a summary holds are told of in several.
func TestManyPairs(t *testing.T) {
	c := newControl(t)
	log := flows.New(10, time.Now())
	const pairs = 2*maxPairs + 10
	for i := range pairs {
		log.Add(event(i, func(e *flows.Event) {
			e.Source.Workload = workload(flows.Party{Namespace: "web", Name: fmt.Sprint("w", i)})
		}))
	}
	address, stop := c.start("127.0.0.1:0")
	defer stop()
	defer c.run(reporter(c, address, log))()
	c.await("all pairs", func(seen map[flows.PairKey]flows.Counts) bool {
		total := uint64(0)
		for _, n := range seen {
			total += n.Connections
		}
		return len(seen) == pairs && total == pairs
	})
}

// Each address of a name is told everything.
func TestReplicas(t *testing.T) {
	log := flows.New(10, time.Now())
	log.Add(event(1))
	one, two := newControl(t), newControl(t)
	two.certificate, two.config = one.certificate, one.config
	first, stopFirst := one.start("127.0.0.1:0")
	defer stopFirst()
	_, port, _ := net.SplitHostPort(first)
	_, stopSecond := two.start("127.0.0.2:" + port)
	defer stopSecond()
	r := reporter(one, "tacitd.test:"+port, log)
	r.resolve = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1", "127.0.0.2"}, nil }
	defer one.run(r)()
	for _, c := range []*control{one, two} {
		c.await("one connection", func(seen map[flows.PairKey]flows.Counts) bool { return seen[mtls].Connections == 1 })
	}
}

// What was counted while nobody took it for long is told of no minute.
func TestLongAway(t *testing.T) {
	log := flows.New(10, time.Now())
	began := time.Now().Add(-time.Hour)
	tell := newTeller(&Reporter{Flows: log, Live: noneLive, Certificates: func() []admin.Certificate { return nil }, Roots: noRoots}, began)
	log.Add(event(1))
	tell.begin(1, time.Now())
	log.Add(event(2))
	s, more := tell.summary(time.Now())
	if more || len(s.GetPairs()) != 1 || s.GetPairs()[0].GetConnections() != 1 {
		t.Errorf("told: %v", s)
	}
	log.Add(event(3))
	if again, more := tell.summary(time.Now()); again != s || !more {
		t.Errorf("what was not taken is not told again as it was: %v", again)
	}
	tell.done(time.Now())
	if s, _ := tell.summary(time.Now()); len(s.GetPairs()) != 1 || s.GetPairs()[0].GetConnections() != 1 || s.GetSequence() != 2 {
		t.Errorf("told after that: %v", s)
	}
}

// Each summary tells all sets of roots that differ, in their order, or none: a
// part would be taken for all.
func TestRoots(t *testing.T) {
	root := func(n int) *x509.Certificate { return &x509.Certificate{Raw: []byte{byte(n), byte(n >> 8)}} }
	many := make([][]*x509.Certificate, maxRootSets+1)
	for i := range many {
		many[i] = []*x509.Certificate{root(i)}
	}
	var sets [][]*x509.Certificate
	tell := newTeller(&Reporter{
		Flows: flows.New(10, time.Now()), Live: noneLive, Certificates: func() []admin.Certificate { return nil },
		Roots: func() [][]*x509.Certificate { return sets },
	}, time.Now())
	for _, c := range []struct{ sets, want [][]*x509.Certificate }{
		{[][]*x509.Certificate{{root(1), root(2)}, {root(1)}, {root(1), root(2)}, {root(1)}}, [][]*x509.Certificate{{root(1), root(2)}, {root(1)}}},
		{[][]*x509.Certificate{nil, {root(1)}}, [][]*x509.Certificate{nil, {root(1)}}},
		{many[1:], many[1:]},
		{many, nil},
	} {
		sets = c.sets
		s, _ := tell.summary(time.Now())
		tell.done(time.Now())
		if len(s.GetRoots()) != len(c.want) {
			t.Fatalf("%d sets of %d, want %d", len(s.GetRoots()), len(sets), len(c.want))
		}
		for i, set := range c.want {
			for j, c := range set {
				if digest := sha256.Sum256(c.Raw); !slices.Equal(s.GetRoots()[i].GetDigests()[j], digest[:]) {
					t.Errorf("set %d, root %d: %x", i, j, s.GetRoots()[i].GetDigests()[j])
				}
			}
		}
	}
}

// What hosts and paths may hold goes nowhere.
func TestNoPaths(t *testing.T) {
	log := flows.New(10, time.Now())
	log.Add(event(1, denied, func(e *flows.Event) {
		e.Kind, e.Method, e.Host, e.Path, e.Status = flows.Requested, "GET", "secret.test", "/?token=secret", 403
	}))
	tell := newTeller(&Reporter{Flows: log, Live: noneLive, Certificates: func() []admin.Certificate { return nil }, Roots: noRoots}, time.Now())
	s, _ := tell.summary(time.Now())
	if len(s.GetDenials()) != 1 || s.GetDenials()[0].GetMethod() != "GET" || s.GetDenials()[0].GetStatus() != 403 {
		t.Fatalf("told: %v", s)
	}
	if text := s.String(); strings.Contains(text, "secret") {
		t.Errorf("told: %s", text)
	}
}

func BenchmarkSummary(b *testing.B) {
	log := flows.New(10, time.Now())
	for i := range 4000 {
		log.Add(event(i, func(e *flows.Event) {
			e.Source.Workload = workload(flows.Party{Namespace: "web", Name: fmt.Sprint("w", i)})
		}))
	}
	tell := newTeller(&Reporter{Flows: log, Live: noneLive, Certificates: func() []admin.Certificate { return nil }, Roots: noRoots}, time.Now())
	for more := true; more; {
		_, more = tell.summary(time.Now())
		tell.done(time.Now())
	}
	b.ResetTimer()
	for i := range b.N {
		for j := range 500 {
			log.Add(event(i, func(e *flows.Event) {
				e.Source.Workload = workload(flows.Party{Namespace: "web", Name: fmt.Sprint("w", j)})
			}))
		}
		tell.summary(time.Now())
		tell.done(time.Now())
	}
}

func noneLive() iter.Seq[flows.Event] { return slices.Values([]flows.Event{}) }
