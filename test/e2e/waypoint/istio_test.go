package waypoint

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

// peer is the command of a program in a pod that speaks HBONE by Istio's own
// library, as somebody.
func (m *mesh) peer(pod string, as model.Identity, args ...string) *exec.Cmd {
	m.t.Helper()
	dir, err := servers.Build(m.t.Context(), "hbone", os.Stderr)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, key, root := m.writeIdentity(as)
	return m.Pod(pod).Command(m.t.Context(), filepath.Join(dir, "hbone"), append(args, "-cert", cert, "-key", key, "-root", root)...)
}

// Istio's own library as the client: who it is decides, and what it asks for
// must be the pod's.
func TestIstioAsClient(t *testing.T) {
	m := start(t)
	server, caller := m.workload("mesh/server", endpoint), m.workload("outside/plain")
	m.state.Apply(model.Update{
		Workloads: []*model.Workload{server, caller}, Services: []*model.Service{service("server", "mesh", "198.18.100.1", 80, 8080)},
		Policies: []*model.Policy{only(caller.Identity())}, AddressesComplete: true, PoliciesComplete: true,
	})
	far := m.serve("b", "mesh/server")
	m.Serve("mesh/server", ":8080", e2e.Echo)
	const text = "four score and seven"
	call := func(as model.Identity, to string) (string, error) {
		cmd := m.peer("outside/plain", as, "-via", netip.AddrPortFrom(server.Addresses[0], 15008).String(), "-to", to)
		cmd.Stdin = strings.NewReader(text)
		said, err := cmd.CombinedOutput()
		return string(said), err
	}
	own := netip.AddrPortFrom(server.Addresses[0], 8080).String()
	for _, to := range []string{own, "server.mesh.svc.cluster.local:80"} {
		if said, err := call(caller.Identity(), to); err != nil || !strings.HasSuffix(said, caller.Addresses[0].String()+"\n"+text) {
			t.Errorf("%s: %q, %v", to, said, err)
		}
	}
	m.wantEnd("the server's proxy", far.Ended, server.Identity(), own)
	stranger := model.Identity{TrustDomain: model.DefaultTrustDomain, Namespace: "outside", ServiceAccount: "stranger"}
	for name, refused := range map[string]struct {
		as     model.Identity
		to     string
		status string
	}{
		"somebody else":    {stranger, own, "401"},
		"another address":  {caller.Identity(), "198.18.2.11:8080", "400"},
		"loopback":         {caller.Identity(), "127.0.0.1:8080", "400"},
		"a proxy's port":   {caller.Identity(), netip.AddrPortFrom(server.Addresses[0], 15001).String(), "400"},
		"a name of nobody": {caller.Identity(), "nobody.example:80", "503"},
		"a closed port":    {caller.Identity(), netip.AddrPortFrom(server.Addresses[0], 9).String(), "503"},
	} {
		if said, err := call(refused.as, refused.to); err == nil || !strings.Contains(said, refused.status) {
			t.Errorf("%s: %q, %v", name, said, err)
		}
	}
}

// Istio's own library as the server, which connects where it is asked to.
func TestIstioAsServer(t *testing.T) {
	m := start(t)
	client, server := m.workload("mesh/client"), m.workload(waypointPod)
	at := netip.AddrPortFrom(server.Addresses[0], 15008).String()
	m.state.Apply(model.Update{Workloads: []*model.Workload{client, server}, AddressesComplete: true, PoliciesComplete: true})
	p, err := world.Launch("hbone", filepath.Join(m.Dir(), "logs", "hbone.log"), m.peer(waypointPod, server.Identity(), "-listen", at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	m.Eventually("it listens", func() error {
		c, err := m.Dial(waypointPod, at)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	near := m.serve("a", "mesh/client")
	m.Serve(waypointPod, ":8080", e2e.Echo)
	to := netip.AddrPortFrom(server.Addresses[0], 8080).String()
	if _, err := m.Call("mesh/client", to); err != nil {
		t.Error(err)
	}
	m.wantEnd("the client's proxy", near.Ended, server.Identity(), to)
}
