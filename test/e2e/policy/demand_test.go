package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// known are the workloads and services that a node's proxy has, by name.
func known(t *testing.T, m *e2e.Mesh, node string) []string {
	t.Helper()
	var dump struct {
		Workloads []struct{ Name string }
		Services  []struct{ Key string }
	}
	if err := m.Admin(node, "/dump", &dump); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, w := range dump.Workloads {
		names = append(names, w.Name)
	}
	for _, v := range dump.Services {
		names = append(names, v.Key)
	}
	slices.Sort(names)
	return names
}

// security is how the last connection between two ends went, by a node's proxy.
func security(t *testing.T, m *e2e.Mesh, node, from, to string) string {
	t.Helper()
	all := m.Connections(node, "live", from, to) // first: one that ends meanwhile is among the others
	all = append(all, m.Connections(node, "ended", from, to)...)
	if len(all) == 0 {
		t.Fatalf("node %s knows no connection from %s to %s", node, from, to)
	}
	slices.SortFunc(all, func(a, b admin.Connection) int { return a.Since.Compare(b.Since) })
	return all[len(all)-1].Security
}

// On demand a proxy knows its own pods and what they talk to, and decides as if
// it knew everything. What it cannot ask about goes nowhere.
func TestOnDemand(t *testing.T) {
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--on-demand"}},
		authorization("labelled", `{selector: {matchLabels: {app: server}}, action: ALLOW, rules: [{when: [{key: "source.labels[app]", values: [client]}]}]}`))
	for _, pod := range []string{"mesh/server", "mesh/server2", "mesh/server3", "outside/target"} {
		m.Serve(pod, ":8080", e2e.Echo)
	}
	settle(t, m)
	own := []string{"client", "near", "plain", "twin"}
	if got := known(t, m, "a"); !slices.Equal(got, own) {
		t.Errorf("before anything is asked for node a knows %q", got)
	}
	const service, outside, unknown = "198.18.100.1:80", "198.18.2.30:8080", "198.18.2.11:8080"
	calls := func(when string) {
		t.Helper()
		began := time.Now()
		for _, to := range []string{service, server} {
			if _, err := m.Call("mesh/client", to); err != nil {
				t.Errorf("%s: mesh/client to %s: %v", when, to, err)
			}
			if _, err := m.Call("mesh/near", to); !denied(err) {
				t.Errorf("%s: mesh/near to %s: %v, want a reset", when, to, err)
			}
		}
		if c := denial(t, m, "b", "mesh/near", "mesh/server", began); c.Policy != "mesh/labelled" || !strings.Contains(c.Reason, "source.labels") {
			t.Errorf("%s: denied by %q: %s", when, c.Policy, c.Reason)
		}
		if how := security(t, m, "a", "mesh/client", "mesh/server"); how != "mtls" {
			t.Errorf("%s: the server was reached by %q", when, how)
		}
		if _, err := m.Call("mesh/client", outside); err != nil {
			t.Errorf("%s: a pod outside of the mesh: %v", when, err)
		}
	}
	calls("asked for")
	if got, want := known(t, m, "a"), slices.Sorted(slices.Values(append(slices.Clone(own), "mesh/server.mesh.svc.cluster.local", "server", "target"))); !slices.Equal(got, want) {
		t.Errorf("node a knows %q, want %q", got, want)
	}

	c := dialLive(t, m, "mesh/client", service)
	if err := m.Control().Kill(); err != nil {
		t.Fatal(err)
	}
	unasked := func(when string) {
		t.Helper()
		mark := m.Node("a").Proxy().Mark()
		if _, err := m.Call("mesh/twin", unknown); !denied(err) {
			t.Errorf("%s: an address that cannot be asked about: %v, want a reset", when, err)
		}
		logged(t, m, m.Node("a").Proxy(), mark, map[string]any{"msg": "connection failed", "error": "no route to " + unknown + ": the control plane has not said yet what is there"})
	}
	calls("without a control plane")
	c.works(t)
	unasked("without a control plane")
	for _, node := range []string{"a", "b"} {
		if err := m.Node(node).Proxy().Kill(); err != nil {
			t.Fatal(err)
		}
		if err := m.Node(node).StartProxy(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	calls("with new proxies and without a control plane")
	unasked("with new proxies and without a control plane")

	if err := m.StartControl(bounded(t)); err != nil {
		t.Fatal(err)
	}
	m.Eventually("what was not known is", func() error {
		_, err := m.Call("mesh/twin", unknown)
		return err
	})
	if how := security(t, m, "a", "mesh/twin", "mesh/server2"); how != "mtls" {
		t.Errorf("it was reached by %q", how)
	}
	calls("with the control plane again")
	// A pod whose label a policy is about is followed for as long as it talks.
	c = dialLive(t, m, "mesh/client", service)
	m.MustApply(pod("client", "{tacit.mesh/redirection: enabled}", "{app: other}"))
	c.reset(t)
}
