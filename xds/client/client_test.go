package client

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

func TestSubscribesToEverything(t *testing.T) {
	srv := newServer(t)
	srv.startClient(t, func(c *Config) {
		c.ClusterID = "east"
		c.TokenFile = writeFile(t, "token", []byte(" secret\n"))
		c.Node = Node{Name: "node-a", IP: netip.MustParseAddr("198.18.0.9"), Pod: "p", Namespace: "n", Domain: "d",
			Metadata: map[string]string{"NETWORK": "net"}}
	})
	st := next(t, "a stream", srv.streams)
	if got := st.metadata.Get("authorization"); len(got) != 1 || got[0] != "Bearer secret" {
		t.Errorf("authorization %q", got)
	}
	if got := st.metadata.Get("clusterid"); len(got) != 1 || got[0] != "east" {
		t.Errorf("clusterid %q", got)
	}
	first, second := st.subscriptions(t)
	if first.GetTypeUrl() != wire.AuthorizationType || second.GetTypeUrl() != wire.AddressType {
		t.Errorf("subscribed to %s, then %s; want policies before workloads", first.GetTypeUrl(), second.GetTypeUrl())
	}
	want := map[string]any{
		"NAME": "p", "NAMESPACE": "n", "INSTANCE_IPS": "198.18.0.9", "NODE_NAME": "node-a", "NETWORK": "net",
		"TACIT_EXTENSIONS": "tacit.mesh/http=1,tacit.mesh/match=1,tacit.mesh/policy=1,tacit.mesh/service=1,tacit.mesh/workload=1",
	}
	for _, r := range []*discovery.DeltaDiscoveryRequest{first, second} {
		if len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe())+len(r.GetInitialResourceVersions()) > 0 {
			t.Errorf("not a wildcard from nothing: %v", r)
		}
		if id := r.GetNode().GetId(); id != "ztunnel~198.18.0.9~p.n~n.svc.d" {
			t.Errorf("node id %q", id)
		}
		if diff := cmp.Diff(want, r.GetNode().GetMetadata().AsMap()); diff != "" {
			t.Errorf("node metadata -want +got:\n%s", diff)
		}
	}
}

func TestNodeDefaults(t *testing.T) {
	if id := (Node{Name: "a"}).ID(); id != "ztunnel~0.0.0.0~tacit-proxy-a.tacit-system~tacit-system.svc.cluster.local" {
		t.Error(id)
	}
}

func TestAppliesWholeThenAcknowledges(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)

	st.mustAck(t, addresses("1", aWorkload("a", "1"), aService("h", "1"), aWorkload("b", "1")))
	u := c.sink.one(t)
	if !u.AddressesComplete || u.PoliciesComplete || len(u.Workloads) != 2 || len(u.Services) != 1 {
		t.Errorf("update %+v", u)
	}
	select {
	case <-c.Ready():
		t.Error("ready without policies")
	default:
	}
	st.mustAck(t, policies("2")) // there are none, which is complete as well
	if u := c.sink.one(t); !u.PoliciesComplete || u.AddressesComplete {
		t.Errorf("update %+v", u)
	}
	next(t, "readiness", c.Ready())

	st.mustAck(t, addresses("3", aWorkload("a", "2")))
	if u := c.sink.one(t); u.AddressesComplete || len(u.Workloads) != 1 || u.Workloads[0].Name != "2" {
		t.Errorf("update %+v", u)
	}
	s := c.Status()
	if !s.Connected || s.Since.IsZero() || s.LastError != "" || s.Server != srv.address {
		t.Errorf("status %+v", s)
	}
	if a := s.Addresses; a.Resources != 3 || !a.Complete || a.Nonce != "3" || a.LastAck.IsZero() || a.Nacks != 0 {
		t.Errorf("status of addresses %+v", a)
	}
}

func TestRejectsByNameAndAppliesTheRest(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	message := st.mustNack(t, addresses("1", aWorkload("good", "1"), bad("wrong", "1", aWorkload("x", "1")), aService("h", "1")))
	if !strings.Contains(message, `"wrong"`) || strings.Contains(message, "good") || !strings.HasPrefix(message, "1 of 3 ") {
		t.Errorf("rejection %q does not name just the bad resource", message)
	}
	if u := c.sink.one(t); len(u.Workloads) != 1 || len(u.Services) != 1 || !u.AddressesComplete {
		t.Errorf("update %+v", u)
	}
	if a := c.Status().Addresses; a.Nacks != 1 || a.LastNack != message || !a.LastAck.IsZero() || a.Resources != 2 {
		t.Errorf("status %+v", a)
	}
	st.mustAck(t, addresses("2", aWorkload("wrong", "2")))
	if a := c.Status().Addresses; a.Nacks != 1 || a.LastAck.IsZero() || a.Resources != 3 {
		t.Errorf("status %+v", a)
	}
}

func TestRejectsOtherTypes(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustNack(t, &discovery.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/other", Nonce: "1", Resources: []*discovery.Resource{aWorkload("a", "1")}})
	c.sink.none(t)
}

// A policy that cannot be taken as it is must not leave its predecessor, which
// may allow more, in force.
func TestBadPolicyReplacesItsPredecessor(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, policies("1", aPolicy("a", "1", 80), aPolicy("b", "1", 80), aPolicy("c", "1", 80)))
	c.sink.one(t)

	unreadable := res("ns/a", "2", &anypb.Any{TypeUrl: wire.AuthorizationType, Value: []byte{0xff}})
	st.mustAck(t, policies("2", unreadable))
	mismatched := bad("ns/b", "2", aPolicy("other", "2", 80))
	nameless := bad("nameless", "2", aPolicy("c", "2", 80))
	message := st.mustNack(t, policies("3", mismatched, nameless))
	if !strings.Contains(message, `"ns/b"`) || !strings.Contains(message, `"nameless"`) {
		t.Errorf("rejection %q", message)
	}
	for key, wantUnknown := range map[string]bool{"ns/a": true, "ns/b": true, "ns/c": false} {
		p, _ := c.sink.snapshot.Policy(key)
		if (p.Unknown != "") != wantUnknown || wantUnknown && p.Action != model.ActionDeny {
			t.Errorf("policy %s is %+v, want a denial: %v", key, p, wantUnknown)
		}
	}
	if p, _ := c.sink.snapshot.Policy("ns/other"); p != nil {
		t.Errorf("applied under a name that was not sent: %+v", p)
	}
	// Sent again, it is rejected again.
	st.mustNack(t, policies("4", mismatched))
	st.mustAck(t, policies("5", aPolicy("b", "3", 81)))
	if p, _ := c.sink.snapshot.Policy("ns/b"); p.Unknown != "" {
		t.Errorf("still denies: %+v", p)
	}
}

func TestRemovals(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, addresses("1", aWorkload("a", "1"), aWorkload("b", "1"), aService("h", "1")))
	st.mustAck(t, policies("2", aPolicy("p", "1", 80), aPolicy("q", "1", 80)))
	st.mustAck(t, removing(addresses("3", aWorkload("b", "2")), "a", "b", "ns/h", "never/seen"))
	st.mustAck(t, removing(policies("4"), "ns/p"))

	s := c.sink.snapshot
	if got := uids(s.Workloads()); !cmp.Equal(got, []string{"b"}) || s.Workload("b").Name != "2" || len(s.Services()) != 0 {
		t.Errorf("workloads %v, services %v", got, s.Services())
	}
	if got := policyKeys(s.Policies()); !cmp.Equal(got, []string{"ns/q"}) {
		t.Errorf("policies %v", got)
	}
	if p, removed := s.Policy("ns/p"); p != nil || !removed {
		t.Error("a removed policy does not count as removed")
	}
	if st := c.Status(); st.Addresses.Resources != 1 || st.Policies.Resources != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestReconnectAsksForChangesOnly(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, policies("1", aPolicy("p", "", 80), aPolicy("q", "v1", 80)))
	st.mustNack(t, policies("2", bad("ns/q", "v2", aPolicy("other", "v2", 80))))
	st.mustAck(t, addresses("3", aWorkload("a", "v1"), aWorkload("b", "v1"), aWorkload("gone", "v1"), aService("h", "v1")))
	st.mustNack(t, addresses("4", bad("b", "v2", aWorkload("x", "v2")), bad("new", "v1", aWorkload("x", "v1"))))
	st.mustAck(t, removing(addresses("5"), "gone"))
	for len(c.sink.updates) > 0 {
		<-c.sink.updates
	}
	st.ended <- status.Error(codes.Unavailable, "restarting")

	st = next(t, "another stream", srv.streams)
	p, a := st.subscriptions(t)
	if diff := cmp.Diff(map[string]string{"ns/p": "", "ns/q": ""}, p.GetInitialResourceVersions()); diff != "" {
		t.Errorf("policies' versions -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "v1", "b": "", "ns/h": "v1"}, a.GetInitialResourceVersions()); diff != "" {
		t.Errorf("addresses' versions -want +got:\n%s", diff)
	}
	// A server without versions sends everything again: that is no news.
	st.mustAck(t, policies("1", aPolicy("p", "", 80)))
	st.mustAck(t, addresses("2", aWorkload("a", "v1")))
	c.sink.none(t)
	st.mustAck(t, removing(addresses("3", aWorkload("b", "v3")), "ns/h"))
	if u := c.sink.one(t); len(u.Workloads) != 1 || len(u.RemovedAddresses) != 1 {
		t.Errorf("update %+v", u)
	}
}

func TestServerKilledAndRestarted(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	st.mustAck(t, addresses("1", aWorkload("a", "1")))
	srv.stop()
	srv.start(t)
	st = next(t, "a stream to the new server", srv.streams)
	if _, a := st.subscriptions(t); a.GetInitialResourceVersions()["a"] != "1" {
		t.Errorf("versions %v", a.GetInitialResourceVersions())
	}
	if s := c.Status(); s.Connected || s.LastError == "" {
		t.Errorf("status before the first answer: %+v", s)
	}
	if c.sink.snapshot.Workload("a") == nil {
		t.Error("forgotten with the connection")
	}
}

// What became of connections and what came by them is counted.
func TestConnectionsAreCounted(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	for _, end := range []error{nil, status.Error(codes.Unavailable, "restarting"), status.Error(codes.PermissionDenied, "not you")} {
		st := next(t, "a stream", srv.streams)
		st.subscriptions(t)
		st.mustAck(t, addresses("1", aWorkload("a", "1")))
		st.ended <- end
	}
	next(t, "a stream", srv.streams).ended <- nil // without a response
	next(t, "another stream", srv.streams)
	s, size := c.Status(), uint64(len(aWorkload("a", "1").GetResource().GetValue()))
	if want := (Ended{Unanswered: 1, Lost: 1, Failed: 1, Complete: 1}); s.Ended != want {
		t.Errorf("connections have ended as %+v, want %+v", s.Ended, want)
	}
	if a := s.Addresses; a.Responses != 3 || a.Bytes != 3*size || s.Policies.Responses != 0 {
		t.Errorf("%+v, want 3 responses of %d bytes", a, size)
	}
}

// ended is a logger and a channel with the reason of each connection's end.
func ended() (*zap.Logger, <-chan zapcore.Entry) {
	entries := make(chan zapcore.Entry, 1000)
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(discard{}), zapcore.WarnLevel)
	return zap.New(core, zap.Hooks(func(e zapcore.Entry) error {
		select {
		case entries <- e:
			return nil
		default:
			return errors.New("too many entries")
		}
	})), entries
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func TestCredentialsAreReadForEachConnection(t *testing.T) {
	tests := map[string]struct {
		file      func(*Config) string
		wrong     func(t *testing.T) []byte
		lastError string
	}{
		"token":       {func(c *Config) string { return c.TokenFile }, func(*testing.T) []byte { return []byte("old") }, "who are you?"},
		"empty token": {func(c *Config) string { return c.TokenFile }, func(*testing.T) []byte { return nil }, "is empty"},
		"roots":       {func(c *Config) string { return c.RootsFile }, func(t *testing.T) []byte { return newAuthority(t).pem() }, "x509"},
		"no roots":    {func(c *Config) string { return c.RootsFile }, func(*testing.T) []byte { return []byte("none") }, "no certificate"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t)
			srv.token = "new"
			log, failures := ended()
			config := srv.config(t)
			config.TokenFile, config.Log, config.Sink = writeFile(t, "token", []byte("new")), log, newRecorder()
			right, err := os.ReadFile(tt.file(&config))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(tt.file(&config), tt.wrong(t), 0o600); err != nil {
				t.Fatal(err)
			}
			c := run(t, New(config))
			next(t, "a failure", failures)
			if s := c.Status(); !strings.Contains(s.LastError, tt.lastError) || strings.Contains(s.LastError, "old") {
				t.Errorf("last error %q, want %q and no token", s.LastError, tt.lastError)
			}
			if err := os.WriteFile(tt.file(&config), right, 0o600); err != nil {
				t.Fatal(err)
			}
			next(t, "a stream with the new file", srv.streams).subscriptions(t)
		})
	}
}

func TestServerOfAnotherName(t *testing.T) {
	srv := newServer(t)
	log, failures := ended()
	c := srv.startClient(t, func(c *Config) { c.ServerName, c.Log = "other.test", log })
	next(t, "a failure", failures)
	if s := c.Status(); s.Connected || !strings.Contains(s.LastError, "other.test") {
		t.Errorf("status %+v", s)
	}
}

func TestWholeMeshInOneMessage(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	big := &model.Workload{UID: "a", Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa", Policies: []string{strings.Repeat("x", 8<<20)}}
	st.mustAck(t, addresses("1", res("a", "1", must(wire.EncodeWorkload(big)))))
	if u := c.sink.one(t); len(u.Workloads) != 1 {
		t.Errorf("update %+v", u)
	}
}

func TestRejectionIsBounded(t *testing.T) {
	var list []error
	for i := range 1000 {
		list = append(list, fmt.Errorf("workload %d: %s\xff", i, strings.Repeat("x", 50)))
	}
	got := rejection(list, 2000)
	if len(got) > maxRejection+100 || !strings.HasPrefix(got, "1000 of 2000 resources rejected: workload 0:") || !strings.Contains(got, " more") {
		t.Errorf("%d bytes: %.200s", len(got), got)
	}
}
