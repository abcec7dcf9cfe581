package hostile

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// A workload of the mesh may ask for what it likes: it gets the pod that it
// has reached, or nothing.
func TestRequests(t *testing.T) {
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	// Whoever reaches one of these has been led astray.
	strays := make(chan string, 100)
	stray := func(c *net.TCPConn) { strays <- fmt.Sprintf("%v reached %v", c.RemoteAddr(), c.LocalAddr()) }
	m.Serve("mesh/server", "127.0.0.1:9000", stray)
	m.Serve("mesh/server", "[::1]:9000", stray)
	m.Serve("mesh/server2", ":9000", stray)
	m.Serve("mesh/near", ":9000", stray)
	m.Serve("outside/target", ":9000", stray)

	const good = victim + ":8080"
	for _, c := range []struct {
		name   string
		fields []string // names and values
		status string
	}{
		{"what it is for", connect(good), "200"},
		{"another pod of the node", connect("198.18.2.11:9000"), "400"},
		{"a pod of another node", connect("198.18.1.20:9000"), "400"},
		{"a pod outside of the mesh", connect("198.18.2.30:9000"), "400"},
		{"the pod by its other family", connect("[fd00:7ac1:2::10]:8080"), "400"},
		{"loopback", connect("127.0.0.1:9000"), "400"},
		{"loopback, IPv6", connect("[::1]:9000"), "400"},
		{"loopback, mapped", connect("[::ffff:127.0.0.1]:9000"), "400"},
		{"the unspecified address", connect("0.0.0.0:9000"), "400"},
		{"link-local", connect("169.254.169.254:9000"), "400"},
		{"link-local with a zone", connect("[fe80::1%eth0]:9000"), "400"},
		{"multicast", connect("224.0.0.1:9000"), "400"},
		{"the control plane", connect("198.18.0.1:15012"), "400"},
		{"port 15001", connect(victim + ":15001"), "400"},
		{"port 15006", connect(victim + ":15006"), "400"},
		{"port 15008", connect(victim + ":15008"), "400"},
		{"no port", connect(victim), "400"},
		{"an empty port", connect(victim + ":"), "400"},
		{"port 0", connect(victim + ":0"), "400"},
		{"port 70000", connect(victim + ":70000"), "400"},
		{"a negative port", connect(victim + ":-1"), "400"},
		{"a host name", connect("server.mesh.svc.cluster.local:8080"), "503"},
		{"localhost", connect("localhost:9000"), "503"},
		{"a user", connect("user@" + good), "400"},
		{"a URL", connect("http://" + good + "/"), "400"},
		{"octal digits", connect("0306.022.02.012:8080"), "400"},
		{"a long authority", connect(strings.Repeat("9", 30_000) + ":80"), "400"},
		{"no authority", []string{":method", "CONNECT"}, "400"},
		{"an empty authority", connect(""), "400"},
		{"two authorities", connect(good, ":authority", "198.18.2.11:9000"), "400"},
		{"two methods", []string{":method", "CONNECT", ":method", "CONNECT", ":authority", good}, "400"},
		{"a host header besides", connect(good, "host", "198.18.2.11:9000"), "200"},
		{"extended CONNECT", connect(good, ":protocol", "websocket", ":scheme", "https", ":path", "/"), "400"},
		{"CONNECT with a path", connect(good, ":scheme", "https", ":path", "/"), "400"},
		{"GET", []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", good}, "400"},
		{"no method", []string{":authority", good}, "400"},
		{"a method in lower case", []string{":method", "connect", ":authority", good}, "400"},
		{"a pseudo header behind others", connect("", "a", "b", ":authority", good), "400"},
		{"a line break in a header", connect(good, "baggage", "a\r\nb"), "400"},
		{"headers past the limit", connect(good, many(20, "baggage", strings.Repeat("x", 4000))...), "431"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := attack(t, m, ca, "mesh/client", victimHBONE)
			if err := a.request(1, c.fields...); err != nil {
				t.Fatal(err)
			}
			if got := a.answer(1); got != c.status {
				t.Errorf("answered with %s, want %s", got, c.status)
			}
			if err := a.connect(3, good); err != nil {
				t.Fatal(err)
			}
			if got := a.answer(3); got != "200" {
				t.Errorf("the next request is answered with %s", got)
			}
		})
	}
	select {
	case where := <-strays:
		t.Error(where)
	default:
	}
}

func connect(authority string, more ...string) []string {
	return append([]string{":method", "CONNECT", ":authority", authority}, more...)
}

func many(n int, field ...string) []string { return slices.Repeat(field, n) }

// What a peer says of itself decides nothing, and is not repeated without a
// look at it.
func TestForgedHeaders(t *testing.T) {
	m, ca := start(t, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-near, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/mesh/sa/near], ipBlocks: [198.18.1.20]}
  - from:
    - source: {principals: [cluster.local/ns/mesh/sa/client], ipBlocks: [198.18.1.11]}
`)
	undisturbed := bystander(t, m) // mesh/twin, whom the policy allows
	defer undisturbed()
	for _, c := range []struct {
		name    string
		headers []string
	}{
		{"nothing", nil},
		{"baggage of another", []string{"baggage", "k8s.namespace.name=mesh,k8s.pod.name=near,service.name=near"}},
		{"forwarded for another", []string{"forwarded", `for="198.18.1.20:4711";host=server.mesh.svc.cluster.local`}},
		{"every way to say it", []string{
			"x-forwarded-for", "198.18.1.20", "x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/mesh/sa/near",
			"x-envoy-original-dst-host", "198.18.2.11:9000", "x-forwarded-network", "other", "authorization", "Bearer x",
		}},
		{"an id that is none", []string{"traceparent", "00-" + strings.Repeat("x", 32) + "-00f067aa0ba902b7-00"}},
		{"an id with quotes", []string{"traceparent", `00-","outcome":"ok","x":"aaaaaaaaa-00f067aa0ba902b7-00`}},
		{"60 KB of baggage", []string{"baggage", strings.Repeat("forged", 10_000)}},
		{"60 KB of id", []string{"traceparent", strings.Repeat("forged-", 8_500)}},
		{"tokens of a hand-over", []string{"tacit-local", "AAAAAAAAAAAAAAAAAAAAAAAAAA", "tacit-joined", "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			counted := rises(t, m, "b", "tacit_denials_total", "direction=inbound")
			a := attack(t, m, ca, "mesh/client", victimHBONE)
			if err := a.connect(1, victim+":8080", c.headers...); err != nil {
				t.Fatal(err)
			}
			if got := a.answer(1); got != "401" {
				t.Errorf("answered with %s, want 401", got)
			}
			counted()
		})
	}
	log, err := os.ReadFile(m.Node("b").Proxy().Log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Errorf("a line of the log is not JSON: %v: %.200q", err, line)
		}
		if len(line) > 4000 || strings.Contains(line, "forged") {
			t.Errorf("a peer's words in the log: %.200q", line)
		}
	}
}

// A token that this proxy has not given hands nothing over: the stream is
// carried as any other.
func TestForgedHandover(t *testing.T) {
	m, ca := start(t)
	undisturbed := bystander(t, m)
	defer undisturbed()
	a := attack(t, m, ca, "mesh/client", victimHBONE)
	if err := a.connect(1, victim+":8080", "tacit-local", strings.Repeat("A", 26)); err != nil {
		t.Fatal(err)
	}
	f, err := a.response(1)
	if err != nil || f.PseudoValue("status") != "200" {
		t.Fatalf("answered with %v, %v", f, err)
	}
	for _, field := range f.RegularFields() {
		t.Errorf("the answer says %v", field)
	}
	const text = "still a tunnel"
	if err := a.WriteData(1, true, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if got := a.readAll(1); !strings.HasSuffix(got, text) {
		t.Errorf("the echo is %q", got)
	}
}

// response reads up to the answer of a stream.
func (a *attacker) response(id uint32) (*http2.MetaHeadersFrame, error) {
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return nil, err
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.StreamID == id {
			return h, nil
		}
	}
}

// readAll reads the data of a stream up to its end.
func (a *attacker) readAll(id uint32) string {
	var all strings.Builder
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return all.String() + " (" + err.Error() + ")"
		}
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			all.Write(d.Data())
			if d.StreamEnded() {
				return all.String()
			}
		}
	}
}

// A pod whose root marks its packets passes its own capture by, and no more:
// to the server it comes without an identity.
func TestMarkedPackets(t *testing.T) {
	m, _ := start(t)
	m.Serve("outside/target", ":8080", e2e.Echo)
	marked := func() error {
		c, err := tryDial(m, "mesh/client", victim+":8080")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	}
	if err := marked(); err != nil {
		t.Fatalf("without a policy, a marked connection: %v", err)
	}
	m.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: mesh}
spec: {mtls: {mode: STRICT}}
`)
	denied := rises(t, m, "b", "tacit_denials_total", "direction=inbound")
	m.Eventually("a marked connection is denied under STRICT", func() error {
		if err := marked(); err == nil {
			return fmt.Errorf("it is allowed")
		}
		return nil
	})
	denied()
	if _, err := m.Call("mesh/client", victim+":8080"); err != nil {
		t.Errorf("an unmarked one: %v", err)
	}
}
