package http

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sys/unix"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// issuer signs tokens.
type issuer struct{ key *ecdsa.PrivateKey }

func newIssuer(t *testing.T) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{key}
}

func (i issuer) keys(t *testing.T) string {
	t.Helper()
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(set)
}

func (i issuer) token(t *testing.T, claims string) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("kid", "1")
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Tokens are verified, demanded by policies alone, kept from the application,
// and their claims passed on as their rules say.
func TestTokens(t *testing.T) {
	good, other := newIssuer(t), newIssuer(t)
	m := e2e.Start(t,
		object("RequestAuthentication", "jwt", fmt.Sprintf(`{jwtRules: [{issuer: good.example, jwks: '%s', fromHeaders: [{name: authorization, prefix: "Bearer "}], fromParams: [t], outputClaimToHeaders: [{header: x-group, claim: group}]}]}`, good.keys(t))),
		object("AuthorizationPolicy", "admin", "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['good.example/ann']}}], to: [{operation: {paths: [/admin]}}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.RequestURI, " ", r.Header.Get("Authorization"), " ", strings.Join(r.Header.Values("X-Group"), ","))
	})
	claims := fmt.Sprintf(`{"iss": "good.example", "sub": "ann", "group": "ops", "exp": %d}`, time.Now().Add(time.Hour).Unix())
	token, forged := good.token(t, claims), other.token(t, claims)
	for version := 1; version <= 2; version++ {
		c := client(t, m, "mesh/client", version)
		for _, test := range []struct{ name, path, header, want string }{
			{"no token", "/a", "X-Group: forged", "200 /a"},
			{"no token where one is demanded", "/admin", "X-Group: forged", "403"},
			{"token", "/admin", "Authorization: Bearer " + token, "200 /admin  ops"},
			{"token of another issuer", "/a", "Authorization: Bearer " + forged, "401"},
			{"no token at all", "/a", "Authorization: Bearer junk", "401"},
			{"parameter", "/admin?a=1&t=" + token + "&b=2", "X-Group: forged", "200 /admin?a=1&b=2  ops"},
		} {
			status, body, header := call(t, c, "GET", "http://"+server+test.path, test.header)
			got := strings.TrimSpace(fmt.Sprint(status, " ", body))
			if got != test.want && !(len(test.want) == 3 && strings.HasPrefix(got, test.want)) {
				t.Errorf("HTTP/%d, %s: %q, want %q", version, test.name, got, test.want)
			}
			if status == 401 && !strings.HasPrefix(header.Get("Www-Authenticate"), "Bearer") {
				t.Errorf("HTTP/%d, %s: no challenge: %v", version, test.name, header)
			}
		}
	}
	log, err := os.ReadFile(m.Node("b").Proxy().Log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), token) || strings.Contains(string(log), forged) {
		t.Error("a token is in the log")
	}
}

// authorizer allows what a function says.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	allows func(*authv3.AttributeContext_HttpRequest) bool
}

func (a authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	code := codes.PermissionDenied
	if a.allows(r.GetAttributes().GetRequest().GetHttp()) && strings.HasPrefix(r.GetAttributes().GetSource().GetPrincipal(), "spiffe://") {
		code = codes.OK
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(code)}}, nil
}

// authorize runs a provider in a pod, and returns what stops it.
func authorize(t *testing.T, m *e2e.Mesh, pod string, allows func(*authv3.AttributeContext_HttpRequest) bool) (stop func()) {
	t.Helper()
	l, err := m.Pod(pod).Listen(":9000")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, authorizer{allows: allows})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	stop = func() {
		s.Stop()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// meshConfig is a file for tacitd.
func meshConfig(t *testing.T, text string) world.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return world.Config{ControlArgs: []string{"--mesh-config", file}}
}

// A provider decides about the requests of a CUSTOM policy; where it is away,
// none passes.
func TestProvider(t *testing.T) {
	m := e2e.StartWith(t, meshConfig(t, `extensionProviders: [{name: gate, envoyExtAuthzGrpc: {service: 198.18.2.30, port: 9000, timeout: 2s}}]`),
		object("AuthorizationPolicy", "custom", "{action: CUSTOM, provider: {name: gate}, rules: [{to: [{operation: {paths: [/asked*]}}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	stop := authorize(t, m, "outside/target", func(about *authv3.AttributeContext_HttpRequest) bool { return about.GetHeaders()["x-pass"] != "" })
	ask := func(version int, path, header string, want int) {
		t.Helper()
		if status, _, _ := call(t, client(t, m, "mesh/client", version), "GET", "http://"+server+path, header); status != want {
			t.Errorf("HTTP/%d, %s with %q: %d, want %d", version, path, header, status, want)
		}
	}
	for version := 1; version <= 2; version++ {
		ask(version, "/free", "A: b", 200)
		ask(version, "/asked", "A: b", 403)
		ask(version, "/asked", "X-Pass: 1", 200)
	}
	stop()
	for version := 1; version <= 2; version++ {
		ask(version, "/free", "A: b", 200)
		ask(version, "/asked", "X-Pass: 1", 403)
	}
}

// A provider in the mesh, on another node or on the same one, is asked as the
// pod that the request is for: over mTLS with its identity, which the provider's
// own policies can demand.
func TestProviderInTheMesh(t *testing.T) {
	for pod, address := range map[string]string{"mesh/near": "198.18.1.20", "mesh/server2": "198.18.2.11"} {
		t.Run(pod, func(t *testing.T) {
			m := e2e.StartWith(t, meshConfig(t, `extensionProviders: [{name: gate, envoyExtAuthzGrpc: {service: `+address+`, port: 9000, timeout: 5s}}]`),
				object("AuthorizationPolicy", "custom", "{selector: {matchLabels: {app: server}}, action: CUSTOM, provider: {name: gate}, rules: [{}]}"),
				object("PeerAuthentication", "strict", "{mtls: {mode: STRICT}}"))
			serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
			authorize(t, m, pod, func(*authv3.AttributeContext_HttpRequest) bool { return true })
			c := client(t, m, "mesh/client", 1)
			for _, test := range []struct {
				caller string
				want   int
			}{{"server", 200}, {"client", 403}, {"server", 200}} {
				apply(t, m, "AuthorizationPolicy", "callers", "{action: ALLOW, rules: [{to: [{operation: {ports: ['8080']}}]}, {from: [{source: {principals: [cluster.local/ns/mesh/sa/"+test.caller+"]}}], to: [{operation: {ports: ['9000']}}]}]}")
				m.Eventually("the provider is for "+test.caller+" alone", func() error { // its connection from before ends
					if status, _, _ := call(t, c, "GET", "http://"+server+"/"); status != test.want {
						return fmt.Errorf("%d, want %d", status, test.want)
					}
					return nil
				})
			}
		})
	}
}

// A policy that covers the provider itself is no endless loop: about questions
// nobody is asked, so all that it matches is denied, with the reason. And requests
// on connections from before their pod left the mesh are asked about as before.
func TestProviderAtTheEdges(t *testing.T) {
	custom := func(rules string) string { return "{action: CUSTOM, provider: {name: gate}, rules: [" + rules + "]}" }
	m := e2e.StartWith(t, meshConfig(t, `extensionProviders: [{name: gate, envoyExtAuthzGrpc: {service: 198.18.2.11, port: 9000, timeout: 60s}}]`),
		object("AuthorizationPolicy", "custom", custom("{}")))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	authorize(t, m, "mesh/server2", func(about *authv3.AttributeContext_HttpRequest) bool { return about.GetHeaders()["x-pass"] != "" })
	kept := client(t, m, "mesh/client", 1)
	want := func(c *http.Client, header string, want int) {
		t.Helper()
		if status, _, _ := call(t, c, "GET", "http://"+server+"/", header); status != want {
			t.Errorf("with %q: %d, want %d", header, status, want)
		}
	}
	want(kept, "X-Pass: 1", 403)
	requested(t, m, 0, map[string]any{"reason": "provider_unavailable", "http.path": "/envoy.service.auth.v3.Authorization/Check"})

	apply(t, m, "AuthorizationPolicy", "custom", custom("{to: [{operation: {ports: ['8080']}}]}"))
	want(kept, "X-Pass: 1", 200)
	m.MustApply(`
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: mesh, labels: {app: server, tacit.mesh/dataplane: disabled}}
spec: {nodeName: b, serviceAccountName: server, containers: [{name: app, image: none, ports: [{name: web, containerPort: 8080}]}]}
status: {podIPs: [{ip: "198.18.2.10"}, {ip: "fd00:7ac1:2::10"}]}
`)
	m.Eventually("the pod has left the mesh", func() error {
		if status, _, _ := call(t, client(t, m, "mesh/client", 1), "GET", "http://"+server+"/"); status != 200 {
			return fmt.Errorf("%d to a new connection", status)
		}
		return nil
	})
	want(kept, "X-Pass: 1", 200)
	want(kept, "A: b", 403)
}

// A provider decides by bodies, of which it sees as much as is declared, and
// what it lets pass arrives whole.
func TestProviderSeesBodies(t *testing.T) {
	m := e2e.StartWith(t, meshConfig(t, `extensionProviders:
- {name: whole, envoyExtAuthzGrpc: {service: 198.18.2.30, port: 9000, timeout: 5s, includeRequestBodyInCheck: {maxRequestBytes: 10}}}
- {name: part, envoyExtAuthzGrpc: {service: 198.18.2.30, port: 9000, timeout: 5s, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}}`),
		object("AuthorizationPolicy", "whole", "{action: CUSTOM, provider: {name: whole}, rules: [{to: [{operation: {paths: [/whole]}}]}]}"),
		object("AuthorizationPolicy", "part", "{action: CUSTOM, provider: {name: part}, rules: [{to: [{operation: {paths: [/part]}}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // all of it: with an answer under way net/http reads no more
		_, _ = w.Write(body)
	})
	authorize(t, m, "outside/target", func(about *authv3.AttributeContext_HttpRequest) bool {
		return strings.HasPrefix(about.GetBody(), "pass")
	})
	long := "pass" + strings.Repeat("x", 100<<10)
	for version := 1; version <= 2; version++ {
		c := client(t, m, "mesh/client", version)
		for _, test := range []struct {
			path, body string
			status     int
		}{
			{"/whole", "pass", 200}, {"/whole", "fail", 403}, {"/whole", "pass567890", 200}, {"/whole", "pass5678901", 413}, {"/whole", long, 413},
			{"/part", "pass", 200}, {"/part", "fail", 403}, {"/part", long, 200}, {"/free", "fail", 200},
		} {
			for name, body := range map[string]io.Reader{"length": strings.NewReader(test.body), "chunks": io.MultiReader(strings.NewReader(test.body))} {
				answer, err := c.Post("http://"+server+test.path, "text/plain", body)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				if err != nil || answer.StatusCode != test.status || test.status == 200 && string(got) != test.body {
					t.Errorf("HTTP/%d, %s, %s of %.12q: %d %.12q %v, want %d", version, test.path, name, test.body, answer.StatusCode, got, err, test.status)
				}
			}
		}
	}
}

// A limit of one node holds for each caller, and one in Redis for the servers
// of all nodes together; without Redis each node counts for itself.
func TestLimits(t *testing.T) {
	m := e2e.StartWith(t, meshConfig(t, `rateLimitStore: {host: 198.18.2.30, port: 6379}`),
		object("RateLimit", "local", "{selector: {matchLabels: {app: server}}, limits: [{requests: 3, interval: 1m, per: {identity: true}}]}"))
	handler := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	serve(t, m, "mesh/server", ":8080", handler)
	serve(t, m, "mesh/twin", ":8080", handler)
	// passed counts how many of n requests pass.
	passed := func(pod, to string, n int) (passed int) {
		t.Helper()
		for i := range n {
			status, _, header := call(t, client(t, m, pod, 1+i%2), "GET", "http://"+to+"/")
			switch {
			case status == 200:
				passed++
			case status != 429 || header.Get("Retry-After") == "":
				t.Errorf("%d %v", status, header)
			}
		}
		return passed
	}
	for _, pod := range []string{"mesh/client", "mesh/near"} {
		if n := passed(pod, server, 6); n != 3 {
			t.Errorf("%d requests of %s pass, want 3", n, pod)
		}
	}
	remove(t, m, "RateLimit", "local")

	stop := runRedis(t, m, "outside/target", "198.18.2.30")
	alone := func() float64 {
		return m.Metric("a", "tacit_rate_limits_local_total") + m.Metric("b", "tacit_rate_limits_local_total")
	}
	together := func(name string) bool {
		m.MustApply(object("RateLimit", name, "{shared: true, limits: [{requests: 5, interval: 1m}]}"))
		settle(t, m)
		before := alone()
		n := passed("mesh/near", server, 4) + passed("mesh/near", "198.18.1.11:8080", 6)
		if alone() != before { // a request waits a tenth of a second for Redis, which is short on a busy machine
			remove(t, m, "RateLimit", name)
			return false
		}
		if n != 5 {
			t.Errorf("%d requests pass, want 5 of both nodes together", n)
		}
		return true
	}
	for try := 1; !together(fmt.Sprint("shared", try)); try++ {
		if try == 10 {
			t.Fatal("the nodes never count together")
		}
	}
	before := alone()
	stop()
	if n := passed("mesh/near", server, 7); n != 5 {
		t.Errorf("without Redis %d requests pass, want 5 of this node", n)
	}
	if alone() == before {
		t.Error("that Redis is away is not counted")
	}
}

// runRedis runs a Redis in a pod, and returns what stops it.
func runRedis(t *testing.T, m *e2e.Mesh, pod, address string) (stop func()) {
	t.Helper()
	redis := m.Pod(pod).Command(t.Context(), "redis-server", "--bind", address, "--protected-mode", "no", "--save", "", "--dir", t.TempDir())
	if err := redis.Start(); err != nil {
		t.Fatal(err)
	}
	m.Eventually("Redis listens", func() error {
		c, err := m.Pod(pod).Dial(m.Context(), address+":6379")
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	return func() {
		_ = redis.Process.Kill()
		_ = redis.Wait() // ended by us
	}
}

// A Redis in the mesh is asked as the pod that the limit is for, over mTLS.
func TestRedisInTheMesh(t *testing.T) {
	m := e2e.StartWith(t, meshConfig(t, `rateLimitStore: {host: 198.18.1.20, port: 6379}`),
		object("RateLimit", "shared", "{selector: {matchLabels: {app: server}}, shared: true, limits: [{requests: 1000000, interval: 1s}]}"),
		object("PeerAuthentication", "strict", "{mtls: {mode: STRICT}}"),
		object("AuthorizationPolicy", "redis", "{selector: {matchLabels: {app: near}}, action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/server]}}], to: [{operation: {ports: ['6379']}}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	defer runRedis(t, m, "mesh/near", "198.18.1.20")()
	c := client(t, m, "mesh/client", 1)
	m.Eventually("a request is counted in Redis", func() error { // it waits a tenth of a second for Redis, which is short on a busy machine
		before := m.Metric("b", "tacit_rate_limits_local_total")
		if status, _, _ := call(t, c, "GET", "http://"+server+"/"); status != 200 {
			t.Errorf("%d", status)
		}
		if m.Metric("b", "tacit_rate_limits_local_total") != before {
			return errors.New("the node has counted for itself")
		}
		return nil
	})
}

// A limit of connections holds for any protocol, and for requests it changes
// nothing.
func TestLimitOfConnections(t *testing.T) {
	m := e2e.Start(t, object("RateLimit", "connections", "{selector: {matchLabels: {app: server}}, limits: [{connections: 3, interval: 1m, per: {identity: true}}]}"))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	for _, pod := range []string{"mesh/client", "mesh/near"} {
		passed := 0
		for range 6 {
			switch _, err := m.Call(pod, server); {
			case err == nil:
				passed++
			case !errors.Is(err, unix.ECONNRESET):
				t.Errorf("%s: %v, want a reset", pod, err)
			}
		}
		if passed != 3 {
			t.Errorf("%d connections of %s pass, want 3", passed, pod)
		}
	}
	denials := m.Metric("b", "tacit_denials_total", "direction=inbound", "reason=rate_limited")
	if denials != 6 {
		t.Errorf("%v denials are counted, want 6", denials)
	}
}
