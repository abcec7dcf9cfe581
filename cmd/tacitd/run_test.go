package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience   = 20 * time.Second
	token      = "0123456789abcdef0123456789abcdef"
	serverName = "tacitd.test"
)

const pods = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {tacit.mesh/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 198.18.1.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 198.18.9.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`

const denyPolicy = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {namespaces: [bad]}}]}]}
`

// fixture is a directory for everything that tacitd reads and writes.
type fixture struct {
	t       *testing.T
	dir     string
	address string // for proxies
	metrics string
	log     *zap.Logger
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, dir: t.TempDir(), log: zap.NewNop()}
	f.write("manifests/pods.yaml", pods)
	f.write("manifests/policy.yaml", denyPolicy)
	f.write("tokens", token+" n1\nffffffffffffffffffffffffffffffff n2\n")
	f.write("token", token)
	f.write("bad-token", "0000000000000000")
	f.write("other-token", "ffffffffffffffffffffffffffffffff")
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) write(name, text string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.path(name)), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.path(name)+".tmp", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path(name)+".tmp", f.path(name)); err != nil {
		f.t.Fatal(err)
	}
}

// start runs tacitd and returns how to stop it, which waits for its end.
func (f *fixture) start(listen string) (stop func()) {
	f.t.Helper()
	return f.run(options{
		from: f.path("manifests"), listen: listen, caDir: f.path("ca"), tokens: f.path("tokens"), serverName: serverName,
		settings:   build.Settings{TrustDomain: "cluster.local", Skips: model.SkipSettings{Mode: model.SkipsAny}},
		statusFile: f.path("status.json"), metrics: "127.0.0.1:0",
	})
}

func (f *fixture) run(o options) (stop func()) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	listening, ended := make(chan string, 1), make(chan error, 1)
	o.listening = func(proxies, metrics string) {
		f.metrics = metrics
		listening <- proxies
	}
	go func() { ended <- run(ctx, o, f.log) }()
	select {
	case f.address = <-listening:
	case err := <-ended:
		f.t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			f.t.Errorf("tacitd ended with %v", err)
		}
	}
}

// sink applies updates as a proxy does.
type sink struct {
	updates chan model.Update
	current *model.Snapshot
}

func (s *sink) Apply(u model.Update) { s.updates <- u }

// until takes updates until the snapshot satisfies ok.
func (s *sink) until(t *testing.T, what string, ok func(*model.Snapshot) bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok(s.current) {
		select {
		case u := <-s.updates:
			s.current = s.current.Apply(u)
		case <-deadline:
			t.Fatal("it never came to this: " + what)
		}
	}
}

func (f *fixture) connect() *sink {
	s := &sink{updates: make(chan model.Update, 100), current: model.NewSnapshot()}
	c := client.New(client.Config{
		Server: f.address, ServerName: serverName, RootsFile: f.path("ca/ca.crt"), TokenFile: f.path("token"), Sink: s,
		Node: client.Node{Name: "p", Namespace: "n"},
	})
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	f.t.Cleanup(func() { cancel(); <-done })
	return s
}

func TestMeshReachesAProxy(t *testing.T) {
	f := newFixture(t)
	defer f.start("127.0.0.1:0")()
	s := f.connect()
	s.until(t, "the manifests", func(s *model.Snapshot) bool { return s.AddressesReady() && s.PoliciesReady() })
	w := s.current.WorkloadAt("", netip.MustParseAddr("198.18.1.1"))
	if w == nil || w.Protocol != model.ProtocolHBONE || w.Identity().String() != "spiffe://cluster.local/ns/shop/sa/web" || len(w.Policies) != 1 || w.Policies[0] != "shop/deny" {
		t.Fatalf("workload %+v", w)
	}
	if v := s.current.ServicesAt("", netip.MustParseAddr("198.18.9.1")); len(v) != 1 || w.Services[v[0].Key()][0] != (model.Port{Service: 80, Target: 8080}) {
		t.Fatalf("service %+v, membership %+v", v, w.Services)
	}
	f.write("manifests/policy.yaml", strings.Replace(denyPolicy, "DENY", "DENI", 1)) // the last good version stays
	f.write("manifests/more.yaml", strings.ReplaceAll(denyPolicy, "deny", "deny2"))
	s.until(t, "the second policy", func(s *model.Snapshot) bool { p, _ := s.Policy("shop/deny2"); return p != nil })
	if p, _ := s.current.Policy("shop/deny"); p == nil {
		t.Error("the first policy went away with its broken manifest")
	}
	if err := os.Remove(f.path("manifests/policy.yaml")); err != nil {
		t.Fatal(err)
	}
	s.until(t, "the first policy's removal", func(s *model.Snapshot) bool { _, removed := s.Policy("shop/deny"); return removed })
}

func TestStatusFile(t *testing.T) {
	f := newFixture(t)
	stop := f.start("127.0.0.1:0")
	s := f.connect()
	s.until(t, "the manifests", func(s *model.Snapshot) bool { return s.AddressesReady() && s.PoliciesReady() })
	f.write("manifests/policy.yaml", strings.Replace(denyPolicy, "DENY", "DENI", 1)+"---"+strings.ReplaceAll(denyPolicy, "deny", "deny2"))
	s.until(t, "the second policy", func(s *model.Snapshot) bool { p, _ := s.Policy("shop/deny2"); return p != nil })
	stop()
	var st status
	data, err := os.ReadFile(f.path("status.json"))
	if err != nil || json.Unmarshal(data, &st) != nil {
		t.Fatalf("status %q, %v", data, err)
	}
	if !st.Serving || len(st.Manifests) != 1 || st.Manifests[0].Line != 5 || st.Manifests[0].Field != "spec.action" || len(st.Policies) != 2 || !st.Policies[0].Enforced {
		t.Errorf("status %s", data)
	}
}

func TestRestartChangesNothing(t *testing.T) {
	f := newFixture(t)
	stop := f.start("127.0.0.1:0")
	s := f.connect()
	s.until(t, "the manifests", func(s *model.Snapshot) bool { return s.AddressesReady() && s.PoliciesReady() })
	root, err := os.ReadFile(f.path("ca/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	defer f.start(f.address)()
	if again, err := os.ReadFile(f.path("ca/ca.crt")); err != nil || string(again) != string(root) {
		t.Fatalf("another root after the restart (%v)", err)
	}
	generation := s.current.Generation()
	f.write("manifests/more.yaml", strings.ReplaceAll(denyPolicy, "deny", "deny2"))
	deadline := time.After(patience)
	for {
		select {
		case u := <-s.updates:
			if len(u.Services) > 0 || len(u.RemovedAddresses) > 0 || len(u.RemovedPolicies) > 0 {
				t.Errorf("sent again: %+v", u)
			}
			for _, p := range u.Policies {
				if p.Key() != "shop/deny2" {
					t.Errorf("sent again: %s", p.Key())
				}
			}
			for _, w := range u.Workloads {
				if len(w.Policies) != 2 {
					t.Errorf("sent again: %s", w.UID)
				}
			}
			s.current = s.current.Apply(u)
			if w := s.current.WorkloadAt("", netip.MustParseAddr("198.18.1.1")); len(w.Policies) == 2 {
				if s.current.Generation() == generation {
					t.Error("nothing was received")
				}
				return
			}
		case <-deadline:
			t.Fatal("the new policy never came")
		}
	}
}

func TestCertificatesAreForPodsOfTheNode(t *testing.T) {
	f := newFixture(t)
	defer f.start("127.0.0.1:0")()
	web := model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	for _, test := range []struct {
		name, token string
		id          model.Identity
		want        string // of the error; empty: a certificate
	}{
		{"its own pod", "token", web, ""},
		{"a pod of another node", "other-token", web, "no enrolled pod of node n2 has the identity"},
		{"no pod at all", "token", model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "admin"}, "no enrolled pod of node n1 has the identity"},
		{"another trust domain", "token", model.Identity{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "web"}, "trust domain"},
		{"not a token", "bad-token", web, "Unauthenticated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := caclient.New(caclient.Config{Address: f.address, ServerName: serverName, RootsFile: f.path("ca/ca.crt"), TokenFile: f.path(test.token)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var got *identity.Material
			var failure error
			_ = c.Subscribe(ctx, identity.Subject{Identity: test.id}, func(m *identity.Material) { got = m; cancel() }, func(err error) {
				if strings.Contains(err.Error(), "which pods there are is not known yet") {
					return // asked before the first reading; asks again
				}
				failure = err
				cancel()
			})
			switch {
			case test.want != "" && (failure == nil || !strings.Contains(failure.Error(), test.want)):
				t.Errorf("got %v, %v, want an error with %q", got, failure, test.want)
			case test.want == "" && (got == nil || got.Identity() != test.id):
				t.Errorf("got %v, %v, want a certificate", got, failure)
			}
		})
	}
}

func TestStartFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		name  string
		spoil func(*fixture, *options)
		want  string
	}{
		{"tokens for all to read", func(f *fixture, o *options) { _ = os.Chmod(o.tokens, 0o644) }, "only its owner can read"},
		{"address taken", func(f *fixture, o *options) { o.listen = taken.Addr().String() }, "listen for proxies"},
		{"key for all to read", func(f *fixture, o *options) { f.write("ca/ca.key", "x"); _ = os.Chmod(f.path("ca/ca.key"), 0o640) }, "only its owner can read"},
		{"metrics address taken", func(f *fixture, o *options) { o.metrics = taken.Addr().String() }, "listen for metrics"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			o := options{from: f.path("manifests"), listen: "127.0.0.1:0", caDir: f.path("ca"), tokens: f.path("tokens"), serverName: serverName, settings: build.Settings{TrustDomain: "cluster.local"}}
			test.spoil(f, &o)
			if err := run(t.Context(), o, zap.NewNop()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--from x", "--ca-dir is missing: "},
		{"--from x", "--tokens is missing: "},
		{"--from x --ca-dir y --tokens z --skips some", "--skips=some: "},
		{"--from x --ca-dir y --tokens z --skips listed", "--skips=listed needs --skip-ports"},
		{"--from x --ca-dir y --tokens z --max-certificate-ttl 0", "--max-certificate-ttl: "},
		{"--from x --ca-dir y --tokens z --jwks-refresh 0", "--jwks-refresh=0s: "},
		{"--from x --ca-dir y --tokens z --jwks-refresh 999ms", "--jwks-refresh=999ms: "},
		{"--kubernetes --from x", "--from has no effect with --kubernetes"},
		{"--kubernetes --tokens x", "--tokens has no effect with --kubernetes"},
		{"--from x --ca-dir y --tokens z --kubeconfig k", "--kubeconfig has no effect without --kubernetes"},
		{"--kubernetes --kubeconfig /nonexistent", "reach the Kubernetes API by /nonexistent"},
		{"extra", "unknown command"},
	} {
		cmd := cli.Prepare(command())
		cmd.SetArgs(strings.Fields(test.args))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.args, err, test.want)
		}
	}
}
