package istio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

// call is a connection from a pod to an address.
type call struct{ from, to string }

// policy is an object about what is let in.
type policy struct{ kind, namespace, name, spec string }

func (p policy) yaml() string {
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", security, p.kind, p.name, p.namespace, p.spec)
}

const (
	clientPrincipal = "cluster.local/ns/mesh/sa/client"
	nearPrincipal   = "cluster.local/ns/mesh/sa/near"
)

// enforced tries a policy of each kind on real connections: those that it
// denies end, also ones that live, and the others do not notice.
func (m *mesh) enforced() {
	m.t.Helper()
	client, near, plain := call{"mesh/client", serverIP + ":8080"}, call{"mesh/near", serverIP + ":8080"}, call{"outside/plain", serverIP + ":8080"}
	plainToNear, plainToOther := call{"outside/plain", nearIP + ":8080"}, call{"outside/plain", serverIP + ":9090"}
	authorization := func(namespace, spec string) []policy {
		return []policy{{"AuthorizationPolicy", namespace, "tried", spec}}
	}
	authentication := func(namespace, spec string) policy {
		return policy{"PeerAuthentication", namespace, "tried", spec}
	}
	const selected = "selector: {matchLabels: {app: server}}"
	for _, tt := range []struct {
		name            string
		policies        []policy
		denied, allowed []call
	}{
		{
			"ALLOW for a namespace", authorization("mesh", `{rules: [{from: [{source: {principals: ["`+clientPrincipal+`"]}}]}]}`),
			[]call{near, plain, {"mesh/server", nearIP + ":8080"}}, []call{client, {"mesh/client", nearIP + ":8080"}, {"mesh/client", serverVIP + ":80"}},
		}, {
			"DENY for a workload", authorization("mesh", `{`+selected+`, action: DENY, rules: [{from: [{source: {principals: ["`+nearPrincipal+`"]}}]}]}`),
			[]call{near, {"mesh/near", serverVIP + ":80"}}, []call{client, plain, {"mesh/near", server2IP + ":8080"}},
		}, {
			"ALLOW for a workload", authorization("mesh", `{`+selected+`, rules: [{from: [{source: {namespaces: [mesh]}}]}]}`),
			[]call{plain}, []call{client, near, plainToNear},
		}, {
			"nothing is allowed", authorization("mesh", "{}"), []call{client, near, plain, plainToNear}, nil,
		}, {
			"DENY for the mesh", authorization(system, `{action: DENY, rules: [{to: [{operation: {ports: ["9090"]}}]}]}`),
			[]call{{"mesh/client", serverIP + ":9090"}, {"mesh/client", nearIP + ":9090"}, plainToOther}, []call{client, near, plain},
		}, {
			"DENY for whoever is not", authorization("mesh", `{`+selected+`, action: DENY, rules: [{from: [{source: {notPrincipals: ["`+clientPrincipal+`"]}}]}]}`),
			[]call{near, plain}, []call{client},
		}, {
			"ALLOW by address", authorization("mesh", `{`+selected+`, rules: [{from: [{source: {ipBlocks: ["`+clientIP+`/32"]}}]}]}`),
			[]call{near, plain}, []call{client},
		}, {
			"ALLOW by what istiod sends no proxy", authorization("mesh", `{`+selected+`, rules: [{to: [{operation: {methods: [GET]}}]}]}`),
			[]call{client, plain}, []call{{"mesh/client", server2IP + ":8080"}},
		}, {
			"DENY before ALLOW", append(authorization("mesh", `{rules: [{}]}`),
				policy{"AuthorizationPolicy", system, "other", `{action: DENY, rules: [{from: [{source: {principals: ["` + nearPrincipal + `"]}}]}]}`}),
			[]call{near}, []call{client, plain},
		}, {
			"STRICT for the mesh", []policy{authentication(system, "{mtls: {mode: STRICT}}")}, []call{plain, plainToNear, plainToOther}, []call{client, near},
		}, {
			"STRICT for a namespace", []policy{authentication("mesh", "{mtls: {mode: STRICT}}")}, []call{plain, plainToNear}, []call{client, near},
		}, {
			"STRICT but for a port", []policy{authentication("mesh", "{"+selected+", mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}}")},
			[]call{plain}, []call{client, plainToOther, plainToNear},
		}, {
			"STRICT for a port", []policy{authentication("mesh", "{"+selected+", mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}")},
			[]call{plainToOther}, []call{client, plain, plainToNear, {"mesh/client", serverIP + ":9090"}},
		}, {
			"PERMISSIVE within STRICT", []policy{
				authentication(system, "{mtls: {mode: STRICT}}"),
				{"PeerAuthentication", "mesh", "near", "{selector: {matchLabels: {app: near}}, mtls: {mode: PERMISSIVE}}"},
			},
			[]call{plain}, []call{client, plainToNear},
		},
	} {
		m.tryPolicies(tt.name, tt.policies, tt.denied, tt.allowed)
	}
}

func (m *mesh) tryPolicies(name string, policies []policy, denied, allowed []call) {
	m.t.Helper()
	var live []*net.TCPConn
	for _, c := range denied { // before the policies nobody is
		conn, err := m.Dial(c.from, c.to)
		m.must(err)
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			m.t.Errorf("%s: beforehand, %s to %s: %v", name, c.from, c.to, err)
		}
		live = append(live, conn)
	}
	for _, p := range policies {
		m.apply(p.yaml())
	}
	for _, c := range denied {
		m.eventually(name, func() error { return m.denied(c) })
	}
	for i, c := range live {
		if err := ends(c); err != nil {
			m.t.Errorf("%s: the connection that was there, %s to %s: %v", name, denied[i].from, denied[i].to, err)
		}
	}
	for _, c := range allowed {
		if _, err := m.Call(c.from, c.to); err != nil {
			m.t.Errorf("%s: %s to %s: %v", name, c.from, c.to, err)
		}
	}
	m.withdraw(policies...)
	for _, c := range denied {
		m.eventually("without "+name, func() error { _, err := m.Call(c.from, c.to); return err })
	}
}

func (m *mesh) withdraw(policies ...policy) {
	m.t.Helper()
	for _, p := range policies {
		m.must(m.cluster.Delete(m.context(), security, p.kind, p.namespace, p.name))
	}
}

// denied succeeds if a call does not.
func (m *mesh) denied(c call) error {
	if saw, err := m.Call(c.from, c.to); err == nil {
		return fmt.Errorf("%s is let in to %s, as %s", c.from, c.to, saw)
	}
	return nil
}

// ends reads what there is until the connection ends.
func ends(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	rest := make([]byte, 64)
	for err := error(nil); err == nil; {
		if _, err = c.Read(rest); errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("it lives on")
		}
	}
	return nil
}

// eventually polls for a state that offers no event: what istiod has yet to send.
func (m *mesh) eventually(what string, check func() error) {
	m.t.Helper()
	if err := world.Poll(m.context(), check); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}
