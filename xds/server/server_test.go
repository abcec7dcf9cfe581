package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// serve lets a server listen on loopback, over TLS, and returns how to reach it.
func serve(t *testing.T, s *Server) func() *grpc.ClientConn {
	t.Helper()
	pair := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(pair.Close)
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: pair.TLS.Certificates, MinVersion: tls.VersionTLS13})))
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { s.Close(); g.GracefulStop(); <-done })
	roots := x509.NewCertPool()
	roots.AddCert(pair.Certificate())
	return func() *grpc.ClientConn {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "example.com")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
}

// client speaks the incremental protocol by hand.
type client struct {
	t         *testing.T
	stream    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	responses chan *discovery.DeltaDiscoveryResponse
	hangUp    func()
	node      *core.Node
}

func connect(t *testing.T, conn *grpc.ClientConn) *client {
	t.Helper()
	return connectAs(t, conn, "test")
}

func connectAs(t *testing.T, conn *grpc.ClientConn, node string) *client {
	t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "node", node))
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, node: &core.Node{Id: node}, stream: stream, responses: make(chan *discovery.DeltaDiscoveryResponse, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(c.responses)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			c.responses <- r
		}
	}()
	c.hangUp = func() { cancel(); <-done }
	t.Cleanup(c.hangUp)
	return c
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	r.Node = c.node
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) ask(typeURL string, have map[string]string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: have})
}

func (c *client) ack(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

// next waits for one response and checks what is in it.
func (c *client) next(typeURL string, resources, removed []string) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	select {
	case r, ok := <-c.responses:
		if !ok {
			c.t.Fatal("the stream ended")
		}
		var names []string
		for _, x := range r.Resources {
			names = append(names, x.Name)
		}
		if r.TypeUrl != typeURL || !slices.Equal(names, resources) || !slices.Equal(r.RemovedResources, removed) {
			c.t.Fatalf("got %s with %q and removed %q\nwant %s with %q and removed %q", r.TypeUrl, names, r.RemovedResources, typeURL, resources, removed)
		}
		return r
	case <-time.After(patience):
		c.t.Fatal("no response")
	}
	panic("unreachable")
}

func pod(name, ip string, policies ...string) *model.Workload {
	return &model.Workload{
		UID: "K//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: "default", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Node: "node-" + name, Capacity: 1, Policies: policies,
	}
}

func policy(name string) *model.Policy {
	return &model.Policy{Name: name, Namespace: "ns", Scope: model.ScopeSelector, Action: model.ActionDeny}
}

func svc(name, vip string) *model.Service {
	return &model.Service{Name: name, Namespace: "ns", Hostname: name + ".ns.svc.cluster.local",
		Addresses: []model.NetworkAddress{{Prefix: netip.MustParsePrefix(vip + "/32")}}}
}

// first is an update that makes a server ready.
func first(u model.Update) model.Update {
	u.AddressesComplete, u.PoliciesComplete = true, true
	return u
}

func started(t *testing.T, u model.Update) *Server {
	t.Helper()
	s := New(zap.NewNop(), func(context.Context) string { return "node-local" })
	apply(t, s, first(u))
	return s
}

func apply(t *testing.T, s *Server, u model.Update) {
	t.Helper()
	if err := s.Apply(u); err != nil {
		t.Fatal(err)
	}
}

func TestEverythingToAWildcard(t *testing.T) {
	s := started(t, model.Update{
		Workloads: []*model.Workload{pod("a", "198.18.0.1", "ns/p")},
		Services:  []*model.Service{svc("s", "198.18.9.1")},
		Policies:  []*model.Policy{policy("p")},
	})
	c := connect(t, serve(t, s)())
	c.ask(wire.AuthorizationType, nil)
	c.ask(wire.AddressType, nil)
	c.ack(c.next(wire.AuthorizationType, []string{"ns/p"}, nil))
	r := c.next(wire.AddressType, []string{"K//Pod/ns/a", "ns/s.ns.svc.cluster.local"}, nil)
	c.ack(r)
	for i, want := range []string{"/198.18.0.1", "/198.18.9.1"} {
		if got := r.Resources[i].Aliases; !slices.Equal(got, []string{want}) {
			t.Errorf("aliases %q, want %q", got, want)
		}
	}
	if w, _, err := wire.DecodeAddress("K//Pod/ns/a", r.Resources[0].Resource); err != nil || w.Name != "a" {
		t.Errorf("decoded %v, %v", w, err)
	}
	apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1", "ns/p")}}) // as it was
	apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.2", "ns/p")}, RemovedAddresses: []string{svc("s", "198.18.9.1").Key(), "never there"}})
	c.ack(c.next(wire.AddressType, []string{"K//Pod/ns/a"}, []string{"ns/s.ns.svc.cluster.local"}))
}

func TestStreamsWaitForTheFirstMesh(t *testing.T) {
	s := New(zap.NewNop(), func(context.Context) string { return "" })
	c := connect(t, serve(t, s)())
	c.ask(wire.AuthorizationType, nil)
	c.ask(wire.AddressType, map[string]string{"K//Pod/ns/gone": "v"})
	apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1")}})
	apply(t, s, first(model.Update{Workloads: []*model.Workload{pod("b", "198.18.0.2")}}))
	c.next(wire.AuthorizationType, nil, nil)
	c.next(wire.AddressType, []string{"K//Pod/ns/a", "K//Pod/ns/b"}, []string{"K//Pod/ns/gone"})
}

// A server that starts anew has the same versions for the same content.
func TestRestartResendsNothing(t *testing.T) {
	mesh := func() model.Update {
		w := pod("a", "198.18.0.1", "ns/p")
		w.Labels = map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}
		w.Services = map[string][]model.Port{"ns/x": {{Service: 1}}, "ns/y": {{Service: 2}}, "ns/z": nil}
		return model.Update{Workloads: []*model.Workload{w, pod("b", "198.18.0.2")}, Services: []*model.Service{svc("s", "198.18.9.1")}, Policies: []*model.Policy{policy("p"), policy("q")}}
	}
	have := map[string]map[string]string{wire.AuthorizationType: {}, wire.AddressType: {}}
	keep := func(r *discovery.DeltaDiscoveryResponse) {
		for _, x := range r.Resources {
			have[r.TypeUrl][x.Name] = x.Version
		}
	}
	c := connect(t, serve(t, started(t, mesh()))())
	c.ask(wire.AuthorizationType, nil)
	c.ask(wire.AddressType, nil)
	keep(c.next(wire.AuthorizationType, []string{"ns/p", "ns/q"}, nil))
	keep(c.next(wire.AddressType, []string{"K//Pod/ns/a", "K//Pod/ns/b", "ns/s.ns.svc.cluster.local"}, nil))

	again := started(t, mesh())
	c = connect(t, serve(t, again)())
	c.ask(wire.AuthorizationType, have[wire.AuthorizationType])
	c.ask(wire.AddressType, have[wire.AddressType])
	c.ack(c.next(wire.AuthorizationType, nil, nil)) // empty: "you have everything"
	c.ack(c.next(wire.AddressType, nil, nil))
	apply(t, again, model.Update{Policies: []*model.Policy{policy("r")}, RemovedPolicies: []string{"ns/q"}})
	c.ack(c.next(wire.AuthorizationType, []string{"ns/r"}, nil))
	c.ack(c.next(wire.AuthorizationType, nil, []string{"ns/q"}))

	have[wire.AuthorizationType]["ns/p"] = "" // rejected then
	have[wire.AddressType]["K//Pod/ns/b"] = "older"
	c = connect(t, serve(t, again)())
	c.ask(wire.AuthorizationType, have[wire.AuthorizationType])
	c.ask(wire.AddressType, have[wire.AddressType])
	c.ack(c.next(wire.AuthorizationType, []string{"ns/p", "ns/r"}, nil)) // not yet the end of "ns/q"
	c.next(wire.AddressType, []string{"K//Pod/ns/b"}, nil)
	c.next(wire.AuthorizationType, nil, []string{"ns/q"})
}

func TestPoliciesComeFirstAndGoLast(t *testing.T) {
	s := started(t, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1")}})
	c := connect(t, serve(t, s)())
	c.ask(wire.AddressType, nil) // before the policies: has to wait for them
	c.ask(wire.AuthorizationType, nil)
	c.ack(c.next(wire.AuthorizationType, nil, nil))
	c.ack(c.next(wire.AddressType, []string{"K//Pod/ns/a"}, nil))

	apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1", "ns/p")}, Policies: []*model.Policy{policy("p")}})
	c.ack(c.next(wire.AuthorizationType, []string{"ns/p"}, nil))
	c.ack(c.next(wire.AddressType, []string{"K//Pod/ns/a"}, nil))

	apply(t, s, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1", "ns/q")}, Policies: []*model.Policy{policy("q")}, RemovedPolicies: []string{"ns/p"}})
	c.ack(c.next(wire.AuthorizationType, []string{"ns/q"}, nil))
	c.ack(c.next(wire.AddressType, []string{"K//Pod/ns/a"}, nil))
	c.ack(c.next(wire.AuthorizationType, nil, []string{"ns/p"}))

	apply(t, s, model.Update{RemovedAddresses: []string{"K//Pod/ns/a"}, RemovedPolicies: []string{"ns/q"}})
	c.ack(c.next(wire.AddressType, nil, []string{"K//Pod/ns/a"}))
	c.ack(c.next(wire.AuthorizationType, nil, []string{"ns/q"}))
}

// The responses of one change say that more follows, but for the last.
func TestChangesAreWhole(t *testing.T) {
	s := started(t, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1")}, Policies: []*model.Policy{policy("p")}})
	c := connect(t, serve(t, s)())
	c.ask(wire.AuthorizationType, nil)
	c.ask(wire.AddressType, nil)
	more := func(want bool, r *discovery.DeltaDiscoveryResponse) {
		t.Helper()
		if got := wire.MoreFollows(r.SystemVersionInfo); got != want {
			t.Errorf("%s of version %s: more follows: %v, want %v", r.TypeUrl, r.SystemVersionInfo, got, want)
		}
		c.ack(r)
	}
	more(true, c.next(wire.AuthorizationType, []string{"ns/p"}, nil))
	more(false, c.next(wire.AddressType, []string{"K//Pod/ns/a"}, nil))
	apply(t, s, model.Update{
		Policies: []*model.Policy{policy("q")}, Workloads: []*model.Workload{pod("b", "198.18.0.2")}, RemovedPolicies: []string{"ns/p"},
	})
	more(true, c.next(wire.AuthorizationType, []string{"ns/q"}, nil))
	more(true, c.next(wire.AddressType, []string{"K//Pod/ns/b"}, nil))
	more(false, c.next(wire.AuthorizationType, nil, []string{"ns/p"}))
	apply(t, s, model.Update{Policies: []*model.Policy{policy("r")}})
	more(false, c.next(wire.AuthorizationType, []string{"ns/r"}, nil))
	apply(t, s, model.Update{RemovedAddresses: []string{"K//Pod/ns/b"}})
	more(false, c.next(wire.AddressType, nil, []string{"K//Pod/ns/b"}))
}

// A name that is given up under a wildcard comes once more, as the protocol
// wants it.
func TestNameGivenUpUnderWildcard(t *testing.T) {
	const a = "K//Pod/ns/a"
	c := connect(t, serve(t, started(t, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1")}}))())
	c.ask(wire.AuthorizationType, nil)
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: []string{"*", a, "gone"}})
	c.next(wire.AuthorizationType, nil, nil)
	c.ack(c.next(wire.AddressType, []string{a}, nil))
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesUnsubscribe: []string{a, "gone"}})
	c.ack(c.next(wire.AddressType, []string{a}, []string{"gone"}))
}

func TestOneKindAlone(t *testing.T) {
	s := started(t, model.Update{Workloads: []*model.Workload{pod("a", "198.18.0.1")}, Policies: []*model.Policy{policy("p")}})
	s.grace = 10 * time.Millisecond
	dial := serve(t, s)
	for typeURL, name := range map[string]string{wire.AddressType: "K//Pod/ns/a", wire.AuthorizationType: "ns/p"} {
		c := connect(t, dial())
		c.ask(typeURL, map[string]string{"ns/gone": "v"})
		if typeURL == wire.AddressType {
			c.next(typeURL, []string{name}, []string{"ns/gone"})
			continue
		}
		c.ack(c.next(typeURL, []string{name}, nil))
		c.next(typeURL, nil, []string{"ns/gone"}) // removals come apart
	}
}

func TestRejectionsAreCounted(t *testing.T) {
	s := started(t, model.Update{Policies: []*model.Policy{policy("p")}})
	c := connect(t, serve(t, s)())
	c.ask("type.googleapis.com/of.the.future", nil) // no answer, and no harm
	c.ask(wire.AuthorizationType, nil)
	c.ask(wire.AddressType, nil)
	r := c.next(wire.AuthorizationType, []string{"ns/p"}, nil)
	c.ack(c.next(wire.AddressType, nil, nil))
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &rpcstatus.Status{Message: "no"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesSubscribe: []string{"gone"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.AddressType, ResourceNamesUnsubscribe: []string{"gone"}})
	c.ack(c.next(wire.AddressType, nil, []string{"gone"})) // so the rejection has been read
	apply(t, s, model.Update{Policies: []*model.Policy{policy("q")}})
	c.next(wire.AuthorizationType, []string{"ns/q"}, nil)
	if got := s.Stats(); got.Streams != 1 || got.Rejections != 1 || got.Responses != 4 || got.Generation != 2 {
		t.Errorf("stats %+v", got)
	}
}

func TestUpdateThatCannotBeEncodedChangesNothing(t *testing.T) {
	s := started(t, model.Update{})
	bad := pod("a", "198.18.0.1")
	bad.Hostname = "\xff"
	if err := s.Apply(model.Update{Workloads: []*model.Workload{pod("b", "198.18.0.2"), bad}}); err == nil {
		t.Fatal("no error")
	}
	if got := s.Stats().Generation; got != 1 {
		t.Errorf("generation %d, want 1", got)
	}
}
