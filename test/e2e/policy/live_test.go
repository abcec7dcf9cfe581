package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// connected are live connections of all callers to one address.
func connected(t *testing.T, m *e2e.Mesh, to string) map[string]live {
	t.Helper()
	all := map[string]live{}
	for pod := range callers {
		all[pod] = dialLive(t, m, pod, to)
	}
	return all
}

// A policy that comes closes exactly the live connections that it denies, on
// the same node too, where the two applications are joined; gone, it denies
// nothing any more.
func TestPolicyChangesUnderLiveConnections(t *testing.T) {
	m := e2e.Start(t)
	for _, place := range []struct {
		name, server, node, address string
		victim, security            string
	}{
		{"across nodes", "mesh/server", "b", server, "mesh/near", "mtls"},
		{"same node", "mesh/near", "a", "198.18.1.20:8080", "mesh/twin", "local"},
	} {
		t.Run(place.name, func(t *testing.T) {
			m.Serve(place.server, ":8080", e2e.Echo)
			all := map[string]live{}
			for pod := range callers {
				if pod != place.server {
					all[pod] = dialLive(t, m, pod, place.address)
				}
			}
			proxy := m.Node(place.node).Proxy()
			mark := proxy.Mark()
			remove := apply(t, m, authorization("closing", deny("ipBlocks: ["+callers[place.victim]+"]")))
			all[place.victim].reset(t)
			line := logged(t, m, proxy, mark, map[string]any{"msg": "connection denied", "direction": "inbound", "src.workload": strings.TrimPrefix(place.victim, "mesh/")})
			if line["policy"] != "mesh/closing" || line["reason"] != "denied" || line["attribute"] != "ipBlocks" || line["security"] != place.security {
				t.Errorf("the log says %v", line)
			}
			for pod, c := range all {
				if pod != place.victim {
					c.works(t)
				}
			}
			if _, err := m.Call(place.victim, place.address); !denied(err) {
				t.Errorf("a new call: %v, want a reset", err)
			}
			remove()
			if _, err := m.Call(place.victim, place.address); err != nil {
				t.Errorf("a call after the policy: %v", err)
			}
			for pod, c := range all {
				if pod != place.victim {
					c.works(t)
				}
			}
		})
	}
}

// An ALLOW policy closes what it does not match, at once or when it changes.
func TestAllowPolicyNarrows(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	all := connected(t, m, server)
	apply(t, m, authorization("mtls", allow("namespaces: [mesh]")))
	all["outside/plain"].reset(t)
	all["mesh/client"].works(t)
	all["mesh/near"].works(t)
	apply(t, m, authorization("mtls", allow("serviceAccounts: [client]")))
	all["mesh/near"].reset(t)
	all["mesh/client"].works(t)
	all["mesh/twin"].works(t)
}

// Labels are the source pod's as they are now, not as they were.
func TestLabelOfTheSourceChanges(t *testing.T) {
	m := e2e.Start(t, authorization("labelled", when("source.labels[app]", "values: [client]")))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	settle(t, m)
	client, twin := dialLive(t, m, "mesh/client", server), dialLive(t, m, "mesh/twin", server)
	m.MustApply(pod("client", "{tacit.mesh/redirection: enabled}", "{app: other}"))
	client.reset(t)
	twin.works(t)
	if _, err := m.Call("mesh/client", server); !denied(err) {
		t.Errorf("a call without the label: %v, want a reset", err)
	}
	m.MustApply(pod("client", "{tacit.mesh/redirection: enabled}", "{app: client}"))
	settle(t, m)
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Errorf("a call with the label again: %v", err)
	}
}

// mTLS that becomes required closes live plaintext connections.
func TestModeBecomesStrict(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	all := connected(t, m, server)
	mark := m.Node("b").Proxy().Mark()
	remove := apply(t, m, peerAuthentication("mesh", "default", "{mtls: {mode: STRICT}}"))
	all["outside/plain"].reset(t)
	logged(t, m, m.Node("b").Proxy(), mark, map[string]any{"msg": "connection denied", "security": "plain", "attribute": "notPrincipals",
		"policy": "tacit-system/istio_converted_static_strict"})
	for pod, c := range all {
		if pod != "outside/plain" {
			c.works(t)
		}
	}
	remove()
	if _, err := m.Call("outside/plain", server); err != nil {
		t.Errorf("a call in plaintext again: %v", err)
	}
}

// A window of time that ends closes what it allowed, without any news.
func TestWindowEnds(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	apply(t, m, authorization("hours", when("request.time", "values: ['"+window(-time.Hour, 4*time.Second)+"']")))
	c := dialLive(t, m, "mesh/client", server)
	c.reset(t)
	denial(t, m, "b", "mesh/client", "mesh/server", time.Time{})
}

// Without the control plane everything stays as it is, for live and for new
// connections, and its return resends nothing.
func TestControlPlaneRestarts(t *testing.T) {
	m := e2e.Start(t, authorization("clients", allow("serviceAccounts: [client]")))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	settle(t, m)
	c := dialLive(t, m, "mesh/client", server)
	works := func(when string) {
		t.Helper()
		c.works(t)
		if _, err := m.Call("mesh/twin", server); err != nil {
			t.Errorf("%s: what is allowed: %v", when, err)
		}
		if _, err := m.Call("mesh/near", server); !denied(err) {
			t.Errorf("%s: what is denied: %v", when, err)
		}
	}
	before := map[string]float64{"a": m.Metric("a", "tacit_snapshot_generation"), "b": m.Metric("b", "tacit_snapshot_generation")}
	if err := m.Control().Kill(); err != nil {
		t.Fatal(err)
	}
	works("without a control plane")
	restarted := time.Now()
	if err := m.StartControl(bounded(t)); err != nil {
		t.Fatal(err)
	}
	for node, generation := range before {
		m.Eventually("node "+node+" is connected again", func() error { return answeredSince(m, node, restarted) })
		if got := m.Metric(node, "tacit_snapshot_generation"); got != generation {
			t.Errorf("node %s went from generation %v to %v", node, generation, got)
		}
	}
	works("after the restart")
	if log := read(t, m.Control()); strings.Contains(log, "certificate issued") {
		t.Errorf("certificates were issued again:\n%s", log)
	}
	apply(t, m, authorization("clients", allow("serviceAccounts: [near]")))
	c.reset(t) // it listens to the new control plane
}

// A proxy that is killed while the control plane is away comes back with
// policies and certificates, also where the agent was killed before.
func TestProxyRestartsWithoutControlPlane(t *testing.T) {
	m := e2e.Start(t, authorization("clients", allow("serviceAccounts: [client]")))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	settle(t, m)
	if err := m.Control().Kill(); err != nil {
		t.Fatal(err)
	}
	restart := func(node *world.Node, what string) {
		t.Helper()
		if err := errors.Join(node.Proxy().Kill(), node.StartProxy(bounded(t))); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Call("mesh/client", server); err != nil {
			t.Errorf("what is allowed, once %s of %s is new: %v", what, node.Name, err)
		}
		if _, err := m.Call("mesh/near", server); !denied(err) {
			t.Errorf("what is denied, once %s of %s is new: %v", what, node.Name, err)
		}
	}
	for _, node := range m.Nodes() {
		restart(node, "the proxy")
		if err := errors.Join(node.Agent().Kill(), node.StartAgent(bounded(t))); err != nil {
			t.Fatal(err)
		}
		logged(t, m, node.Agent(), 0, map[string]any{"msg": "proxy is ready"})
		restart(node, "the agent, and then the proxy,")
	}
	if c := denial(t, m, "b", "mesh/near", "mesh/server", time.Time{}); c.Policy != "mesh/clients" {
		t.Errorf("it was denied by %q: %s", c.Policy, c.Reason)
	}
}

// forgetful ends the control plane and, on both nodes, agents and proxies, and
// with them all that is known of the mesh, and starts the latter two again. A
// proxy is not ready then.
func forgetful(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	if err := m.Control().Kill(); err != nil {
		t.Fatal(err)
	}
	atOnce, cancel := context.WithCancel(t.Context())
	cancel()
	for _, node := range m.Nodes() {
		for _, program := range []*world.Program{node.Proxy(), node.Agent()} {
			if err := program.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := node.StartAgent(bounded(t)); err != nil {
			t.Fatal(err)
		}
		if err := node.StartProxy(atOnce); err == nil {
			t.Error("a proxy that knows nothing is ready")
		}
	}
	for pod, node := range map[string]string{"mesh/client": "a", "mesh/twin": "a", "mesh/near": "a", "mesh/server": "b"} {
		logged(t, m, m.Node(node).Agent(), 0, map[string]any{"msg": "pod captured", "pod": pod})
	}
}

// Before the control plane's first word nothing is known: connections wait for
// it, and then it decides.
func TestConnectionsWaitForTheFirstWord(t *testing.T) {
	m := e2e.Start(t, authorization("no-near", deny("serviceAccounts: [near]")))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	forgetful(t, m)
	plain, err := m.Dial("outside/plain", server)
	if err != nil {
		t.Fatal(err)
	}
	results := map[string]chan error{}
	for _, pod := range []string{"mesh/client", "mesh/twin", "mesh/near"} {
		result := make(chan error, 1)
		results[pod] = result
		go func() {
			_, err := m.Call(pod, server)
			result <- err
		}()
	}
	m.Eventually("connections wait on node a", func() error {
		if n := len(m.Connections("a", "live", "mesh/", "198.18.2.10")); n < len(results) {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	if err := m.StartControl(bounded(t)); err != nil {
		t.Fatal(err)
	}
	for pod, result := range results {
		if err := <-result; pod == "mesh/near" && !denied(err) || pod != "mesh/near" && err != nil {
			t.Errorf("the call of %s: %v", pod, err)
		}
	}
	greeted(t, plain, "outside/plain").works(t)
}

// What nobody knows whether to allow is denied for the lack of it.
func TestUnknownIsDenied(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	forgetful(t, m)
	results := make(chan error, 2)
	for _, pod := range []string{"outside/plain", "mesh/client"} {
		go func() {
			_, err := m.Call(pod, server)
			results <- err
		}()
	}
	for range cap(results) {
		if err := <-results; !denied(err) {
			t.Errorf("a call: %v, want a reset", err)
		}
	}
	logged(t, m, m.Node("b").Proxy(), 0, map[string]any{"msg": "connection denied", "direction": "inbound", "reason": "not_ready"})
	logged(t, m, m.Node("a").Proxy(), 0, map[string]any{"msg": "connection failed", "direction": "outbound", "reason": "no_route"})
}
