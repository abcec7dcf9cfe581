// Package http tests what the mesh makes of HTTP, with real servers and
// clients: which requests each policy lets through, that everything else about
// them stays as it is, and that nothing gets round the decision.
package http

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

func TestMain(m *testing.M) { e2e.Main(m) }

const server = "198.18.2.10:8080"

func object(kind, name, spec string) string {
	group := "security.istio.io/v1"
	if kind == "RateLimit" {
		group = "policy.tacit.mesh/v1alpha1"
	}
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: mesh}\nspec: %s\n", group, kind, name, spec)
}

// apply puts an object in force on node b, where the servers are.
func apply(t *testing.T, m *e2e.Mesh, kind, name, spec string) {
	t.Helper()
	m.MustApply(object(kind, name, spec))
	settle(t, m)
}

func remove(t *testing.T, m *e2e.Mesh, kind, name string) {
	t.Helper()
	if err := m.Delete(kind, "mesh/"+name); err != nil {
		t.Fatal(err)
	}
	settle(t, m)
}

// settle returns when both nodes have everything that was applied or deleted
// before.
func settle(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	await := func(present bool) {
		t.Helper()
		for _, node := range []string{"a", "b"} {
			m.Eventually("node "+node+" has the change", func() error {
				var dump struct{ Policies []struct{ Key string } }
				if err := m.Admin(node, "/dump", &dump); err != nil {
					return err
				}
				has := slices.ContainsFunc(dump.Policies, func(p struct{ Key string }) bool { return p.Key == "mesh/barrier" })
				if has != present {
					return fmt.Errorf("barrier there: %v", has)
				}
				return nil
			})
		}
	}
	m.MustApply(object("AuthorizationPolicy", "barrier", "{action: DENY, selector: {matchLabels: {app: none}}, rules: [{}]}"))
	await(true)
	if err := m.Delete("AuthorizationPolicy", "mesh/barrier"); err != nil {
		t.Fatal(err)
	}
	await(false)
}

// client speaks HTTP from a pod; version is 1 or 2.
func client(t *testing.T, m *e2e.Mesh, pod string, version int) *http.Client {
	t.Helper()
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return m.Pod(pod).Dial(ctx, address)
		},
	}
	transport.Protocols.SetHTTP1(version == 1)
	transport.Protocols.SetUnencryptedHTTP2(version == 2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: e2e.Patience}
}

// serve runs net/http's server in a pod.
func serve(t *testing.T, m *e2e.Mesh, pod, address string, handler http.HandlerFunc) {
	t.Helper()
	l, err := m.Pod(pod).Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols), ReadHeaderTimeout: e2e.Patience}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// call makes a request and returns the status and the body; header is "K: V"
// lines.
func call(t *testing.T, c *http.Client, method, url string, header ...string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		if r.Header.Add(name, value); name == "Host" {
			r.Host = value
		}
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body), answer.Header
}

// requested is a line of the access log of node b.
func requested(t *testing.T, m *e2e.Mesh, mark int64, want map[string]any) map[string]any {
	t.Helper()
	var found map[string]any
	_, err := m.Node("b").Proxy().WaitLog(m.Context(), mark, func(line string) bool {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil {
			return false
		}
		for name, value := range want {
			if fields[name] != value {
				return false
			}
		}
		found = fields
		return true
	})
	if err != nil {
		t.Fatalf("log line with %v: %v", want, err)
	}
	return found
}

func denied(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Requests are decided on one by one, by what they ask for, on connections that
// live on; over mTLS and in clear, HTTP/1 and HTTP/2.
func TestRequests(t *testing.T) {
	m := e2e.Start(t)
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Method, " ", r.RequestURI)
	})
	tests := []struct{ name, spec, method, path, header, want string }{
		{"method", "{action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}", "GET", "/a", "", "200 GET /a"},
		{"other method", "{action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}", "POST", "/a", "", "403"},
		{"path", "{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}", "GET", "/admin/x", "", "403"},
		{"path in disguise", "{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}", "GET", "/%61dmin/x", "", "403"},
		{"path that is changed", "{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}", "GET", "/x/./%7Ey?q=%41", "", "200 GET /x/~y?q=%41"},
		{"path with dots", "{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}", "GET", "/x/%2e%2e/admin/x", "", "403"},
		{"other path", "{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}", "GET", "/a?b=/admin", "", "200 GET /a?b=/admin"},
		{"path template", "{action: ALLOW, rules: [{to: [{operation: {paths: ['/a/{*}/c']}}]}]}", "GET", "/a/b/c", "", "200 GET /a/b/c"},
		{"host", "{action: ALLOW, rules: [{to: [{operation: {hosts: [shop.example]}}]}]}", "GET", "/", "Host: shop.example", "200 GET /"},
		{"other host", "{action: ALLOW, rules: [{to: [{operation: {hosts: [shop.example]}}]}]}", "GET", "/", "Host: other.example", "403"},
		{"header", "{action: ALLOW, rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]}", "GET", "/", "X-Role: admin", "200 GET /"},
		{"other header", "{action: ALLOW, rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]}", "GET", "/", "X-Role: user", "403"},
	}
	clients := map[string]*http.Client{}
	for _, pod := range []string{"mesh/client", "outside/plain"} {
		for version := 1; version <= 2; version++ {
			clients[fmt.Sprint(pod, " HTTP/", version)] = client(t, m, pod, version)
		}
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			apply(t, m, "AuthorizationPolicy", "case", test.spec)
			for name, c := range clients {
				var header []string
				if test.header != "" {
					header = []string{test.header}
				}
				status, body, h := call(t, c, test.method, "http://"+server+test.path, header...)
				got := strings.TrimSpace(fmt.Sprint(status, " ", body))
				switch {
				case status == 403 && test.want == "403":
					if h.Get("tacit-connection-id") == "" || h.Get("tacit-policy") != "" {
						t.Errorf("%s: header of the denial: %v", name, h)
					}
				case got != test.want:
					t.Errorf("%s: %q, want %q", name, got, test.want)
				}
			}
		})
	}
	if n := m.Metric("b", "istio_requests_total", "response_code=403", "source_workload=client"); n == 0 {
		t.Error("no denial is counted")
	}
	if n := m.Metric("b", "tacit_policy_decisions_total", "decision=allow", "policy=mesh/case"); n == 0 {
		t.Error("the policy is not counted")
	}
}

// A denial is told with its policy and attribute, and the id that the answer
// has.
func TestDenialIsExplained(t *testing.T) {
	m := e2e.Start(t, object("AuthorizationPolicy", "no-delete", "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}"))
	serve(t, m, "mesh/server", ":8080", func(http.ResponseWriter, *http.Request) {})
	mark := m.Node("b").Proxy().Mark()
	status, _, header := call(t, client(t, m, "mesh/client", 1), "DELETE", "http://"+server+"/a?secret=1")
	line := requested(t, m, mark, map[string]any{"msg": "request denied"})
	for name, want := range map[string]any{
		"id": header.Get("tacit-connection-id"), "http.method": "DELETE", "http.path": "/a", "http.status": 403.0,
		"policy": "mesh/no-delete", "attribute": "methods", "reason": "denied", "src.identity": "spiffe://cluster.local/ns/mesh/sa/client",
	} {
		if line[name] != want {
			t.Errorf("%s is %v, want %v", name, line[name], want)
		}
	}
	if status != 403 {
		t.Errorf("%d", status)
	}
}

// Live connections meet a policy that comes: those whose bytes nobody has read
// are ended, responses under way that are no longer allowed too, and others
// stay.
func TestPolicyComes(t *testing.T) {
	m := e2e.Start(t)
	release := make(chan struct{})
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-release:
			_, _ = io.WriteString(w, "ended\n")
		}
	})
	open := func(path string, version int) (body *bufio.Reader, done func()) {
		t.Helper()
		r, err := client(t, m, "mesh/client", version).Get("http://" + server + path) //nolint:bodyclose // done closes it
		if err != nil {
			t.Fatal(err)
		}
		b := bufio.NewReader(r.Body)
		if line, _ := b.ReadString('\n'); line != "begun\n" {
			t.Fatalf("%s: %q", path, line)
		}
		return b, func() { _ = r.Body.Close() }
	}
	unread, done := open("/a", 1)
	defer done()
	apply(t, m, "AuthorizationPolicy", "first", "{action: DENY, rules: [{to: [{operation: {paths: [/none]}}]}]}")
	if _, err := unread.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection from before: %v", err)
	}
	for version := 1; version <= 2; version++ {
		stays, done := open("/stays", version)
		defer done()
		goes, done := open("/goes", version)
		defer done()
		apply(t, m, "AuthorizationPolicy", fmt.Sprint("second", version), "{action: DENY, rules: [{to: [{operation: {paths: [/goes]}}]}]}")
		if line, err := goes.ReadString('\n'); err == nil {
			t.Errorf("HTTP/%d: denied meanwhile: %q", version, line)
		}
		release <- struct{}{}
		if line, err := stays.ReadString('\n'); line != "ended\n" {
			t.Errorf("HTTP/%d: allowed still: %q, %v", version, line, err)
		}
		remove(t, m, "AuthorizationPolicy", fmt.Sprint("second", version))
	}
}

// What is not HTTP on a covered port cannot meet conditions about requests: an
// ALLOW policy does not let it pass, and a DENY policy acts on the rest of it.
func TestOtherProtocols(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	for _, test := range []struct {
		name, spec string
		allowed    bool
	}{
		{"ALLOW", "{action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}", false},
		{"DENY", "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}", false},
		{"DENY of others", "{action: DENY, rules: [{from: [{source: {namespaces: [other]}}], to: [{operation: {methods: [GET]}}]}]}", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			apply(t, m, "AuthorizationPolicy", "case", test.spec)
			began := time.Now()
			_, err := m.Call("mesh/client", server)
			if test.allowed != (err == nil) || err != nil && !denied(err) {
				t.Errorf("%v", err)
			}
			if test.allowed {
				return
			}
			m.Eventually("the reason", func() error {
				for _, c := range m.Connections("b", "denied", "mesh/client", "mesh/server") {
					if c.Ended.After(began) && strings.Contains(c.Reason, "not HTTP") {
						return nil
					}
				}
				return errors.New("no denial says that it is not HTTP")
			})
		})
	}
}
