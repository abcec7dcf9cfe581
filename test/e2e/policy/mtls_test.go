package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

func peerAuthentication(namespace, name, spec string) string {
	return object("PeerAuthentication", namespace, name, spec)
}

const ofServer = "selector: {matchLabels: {app: server}}"

// Whether plaintext gets in, at each level at which it can be said. Callers
// with an identity always get in.
func TestModesOfMTLS(t *testing.T) {
	m := e2e.Start(t)
	places := []string{"198.18.2.10:8080", "198.18.2.10:9090", "198.18.2.11:8080"}
	m.Serve("mesh/server", ":8080", e2e.Echo)
	m.Serve("mesh/server", ":9090", e2e.Echo)
	m.Serve("mesh/server2", ":8080", e2e.Echo)
	mesh := func(mode string) string {
		return peerAuthentication("tacit-system", "default", "{mtls: {mode: "+mode+"}}")
	}
	namespace := func(mode string) string { return peerAuthentication("mesh", "default", "{mtls: {mode: "+mode+"}}") }
	pod := func(spec string) string { return peerAuthentication("mesh", "pod", "{"+ofServer+", "+spec+"}") }
	for _, test := range []struct {
		name    string
		objects []string
		open    [3]bool // to plaintext: server:8080, server:9090, server2:8080
	}{
		{"mesh STRICT", []string{mesh("STRICT")}, [3]bool{}},
		{"mesh STRICT, namespace PERMISSIVE", []string{mesh("STRICT"), namespace("PERMISSIVE")}, [3]bool{true, true, true}},
		{"namespace STRICT", []string{namespace("STRICT")}, [3]bool{}},
		{"namespace STRICT, pod DISABLE", []string{namespace("STRICT"), pod("mtls: {mode: DISABLE}")}, [3]bool{true, true, false}},
		{"namespace unset, mesh STRICT", []string{mesh("STRICT"), namespace("UNSET")}, [3]bool{}},
		{"pod STRICT", []string{pod("mtls: {mode: STRICT}")}, [3]bool{false, false, true}},
		{"pod STRICT but for a port", []string{pod("mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}")}, [3]bool{false, true, true}},
		{"pod STRICT at one port", []string{pod("mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}")}, [3]bool{true, false, true}},
		{"namespace STRICT, pod DISABLE at a port", []string{namespace("STRICT"), pod("portLevelMtls: {8080: {mode: DISABLE}}")}, [3]bool{true, false, false}},
		{"nothing", nil, [3]bool{true, true, true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			remove := apply(t, m, test.objects...)
			for i, place := range places {
				if _, err := m.Call("mesh/client", place); err != nil {
					t.Errorf("%s with mTLS: %v", place, err)
				}
				switch _, err := m.Call("outside/plain", place); {
				case test.open[i] && err != nil:
					t.Errorf("%s in plaintext: %v", place, err)
				case !test.open[i] && !denied(err):
					t.Errorf("%s in plaintext: %v, want a reset", place, err)
				}
			}
			remove()
		})
	}
}

// A denied plaintext call is found in the log, in the metrics and by explain,
// beforehand and by its id, each with the reason.
func TestPlaintextDenialIsExplained(t *testing.T) {
	m := e2e.Start(t, peerAuthentication("mesh", "default", "{mtls: {mode: STRICT}}"))
	settle(t, m)
	proxy := m.Node("b").Proxy()
	mark, began := proxy.Mark(), time.Now()
	before := m.Metric("b", "tacit_denials_total", "direction=inbound", "reason=denied")
	if _, err := m.Call("outside/plain", server); !denied(err) {
		t.Fatalf("call in plaintext: %v, want a reset", err)
	}
	const policy = "tacit-system/istio_converted_static_strict"
	c := denial(t, m, "b", callers["outside/plain"], "mesh/server", began)
	if c.Policy != policy || !strings.Contains(c.Reason, "notPrincipals") {
		t.Errorf("policy %q, reason %q", c.Policy, c.Reason)
	}
	logged(t, m, proxy, mark, map[string]any{"msg": "connection denied", "direction": "inbound", "id": c.ID, "src.workload": "plain",
		"dst.workload": "server", "policy": policy, "reason": "denied", "attribute": "notPrincipals"})
	if got := m.Metric("b", "tacit_denials_total", "direction=inbound", "reason=denied"); got != before+1 {
		t.Errorf("%v denials are counted, want %v", got, before+1)
	}
	for name, args := range map[string][]string{
		"by its ends": {"--from", "outside/plain", "--to", "mesh/server:8080"},
		"by its id":   {c.ID},
	} {
		text, code := explain(t, m, "b", args...)
		if code != 3 || !strings.Contains(text, policy) || !strings.Contains(text, "enrol pod outside/plain") {
			t.Errorf("explained %s (exit code %d):\n%s", name, code, text)
		}
	}
	if text, code := explain(t, m, "b", "--from", "mesh/client", "--to", "mesh/server:8080"); code != 0 {
		t.Errorf("with an identity (exit code %d):\n%s", code, text)
	}
}

// A connection between two nodes has one id, by which both explain it.
func TestDenialIsExplainedOnBothNodes(t *testing.T) {
	m := e2e.Start(t, authorization("near-only", "{action: ALLOW, rules: [{from: [{source: {serviceAccounts: [near]}}]}]}"))
	settle(t, m)
	began := time.Now()
	if _, err := m.Call("mesh/client", server); !denied(err) {
		t.Fatalf("call: %v, want a reset", err)
	}
	c := denial(t, m, "b", "mesh/client", "mesh/server", began)
	for _, node := range []string{"a", "b"} {
		text, code := explain(t, m, node, c.ID)
		if code != 3 || !strings.Contains(text, "mesh/near-only") || !strings.Contains(text, "serviceAccounts") {
			t.Errorf("on node %s (exit code %d):\n%s", node, code, text)
		}
	}
	out := logged(t, m, m.Node("a").Proxy(), 0, map[string]any{"id": c.ID, "direction": "outbound"})
	if out["outcome"] != "denied" || out["reason"] != "denied_by_peer" {
		t.Errorf("the client's node logs %v", out)
	}
}

// A client that skips its proxy comes without an identity; the denial says so.
func TestSkippingClientIsToldSo(t *testing.T) {
	m := e2e.Start(t, peerAuthentication("mesh", "default", "{mtls: {mode: STRICT}}"), pod("client", `{tacit.mesh/redirection: enabled, tacit.mesh/skip-outbound-ports: "8080"}`, "{app: client}"))
	settle(t, m)
	mark := m.Node("b").Proxy().Mark()
	m.Eventually("the client skips", func() error {
		_, err := m.Call("mesh/client", server)
		if !denied(err) {
			return err
		}
		return nil
	})
	line := logged(t, m, m.Node("b").Proxy(), mark, map[string]any{"msg": "connection denied", "reason": "client_skips_port", "src.workload": "client"})
	if text, _ := line["error"].(string); !strings.Contains(text, "skips") {
		t.Errorf("the log says %q", text)
	}
}
