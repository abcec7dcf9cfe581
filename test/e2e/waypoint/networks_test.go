package waypoint

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A service whose only endpoints are in another network is reached through that
// network's gateway, which learns no more than the service's name: mutual TLS
// with the server is inside of that with the gateway.
func TestGatewayOfAnotherNetwork(t *testing.T) {
	m := start(t)
	near, far := m, &mesh{Mesh: m.Mesh, t: t, ca: m.ca, state: state.New()} // each has its own view
	client, server, gateway := m.workload("mesh/client"), m.workload("mesh/server", endpoint), m.workload(waypointPod)
	web := service("server", "mesh", "198.18.100.1", 80, 8080, func(v *model.Service) { v.SANs = []string{server.Identity().String()} })
	gateway.Network, gateway.Protocol = "far", model.ProtocolTCP
	remote := &model.Workload{
		UID: "far/SplitHorizonWorkload/web", Namespace: "mesh", ServiceAccount: "default", TrustDomain: model.DefaultTrustDomain, Network: "far",
		Protocol: model.ProtocolHBONE, Capacity: 1, Services: map[string][]model.Port{key: nil},
		NetworkGateway: &model.Gateway{Network: "far", Address: gateway.Addresses[0], Port: 15008},
	}
	near.state.Apply(model.Update{
		Workloads: []*model.Workload{client, gateway, remote}, Services: []*model.Service{web}, AddressesComplete: true, PoliciesComplete: true,
	})
	far.state.Apply(model.Update{
		Workloads: []*model.Workload{server}, Services: []*model.Service{web}, Policies: []*model.Policy{only(client.Identity())},
		AddressesComplete: true, PoliciesComplete: true,
	})
	const name = "server.mesh.svc.cluster.local:80"
	m.startEnvoy(m.envoyConfig(gatewayConfig, client, server, "AUTHORITY", name, "BEHIND", "border"), netip.AddrPortFrom(gateway.Addresses[0], 15008).String())
	here, there := near.serve("a", "mesh/client"), far.serve("b", "mesh/server")
	m.Serve("mesh/server", ":8080", e2e.Echo)

	if saw, err := m.Call("mesh/client", authority); err != nil || saw != gateway.Addresses[0].String() {
		t.Errorf("through the gateway the server saw %s, want %v: %v", saw, gateway.Addresses[0], err)
	}
	m.wantEnd("the client's proxy", here.Ended, gateway.Identity(), authority)
	m.wantEnd("the server's proxy", there.Ended, server.Identity(), "198.18.2.10:8080")
	if from := there.Ended()[0].Source.Identity; from != client.Identity().String() {
		t.Errorf("the server's proxy knows the client as %s", from)
	}

	// Whoever else is behind the gateway is not who was meant.
	web = service("server", "mesh", "198.18.100.1", 80, 8080, func(v *model.Service) { v.SANs = []string{gateway.Identity().String()} })
	near.state.Apply(model.Update{Services: []*model.Service{web}})
	if _, err := m.Call("mesh/client", authority); err == nil {
		t.Error("somebody else is reached behind the gateway")
	}
}

// listenFirst is Call, but sends nothing before the server has spoken: where FIN
// comes with the PROXY header, Envoy's listener filter drops the connection.
func (m *mesh) listenFirst(pod, address string) (seen string, err error) {
	c, err := m.Dial(pod, address)
	if err != nil {
		return "", err
	}
	if err := c.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return "", err
	}
	said := bufio.NewReader(c)
	if seen, err = said.ReadString('\n'); err != nil {
		return "", err
	}
	const text = "four score and seven"
	if _, err = io.WriteString(c, text); err == nil {
		err = c.CloseWrite()
	}
	if err != nil {
		return "", err
	}
	if echo, err := io.ReadAll(said); err != nil || string(echo) != text {
		return "", fmt.Errorf("the echo is %q: %w", echo, err)
	}
	return strings.TrimSuffix(seen, "\n"), nil
}

// A waypoint whose own pod is captured is told who comes and to which service, and what
// it sends on goes straight to the endpoint.
func TestSandwich(t *testing.T) {
	m := start(t)
	client, server := m.workload("mesh/client"), m.workload("mesh/server", endpoint)
	gate := model.Gateway{Service: "outside/gate.outside.svc.cluster.local", Port: 15008}
	waypoint := m.workload(waypointPod, func(w *model.Workload) {
		w.Services = map[string][]model.Port{gate.Service: nil}
		w.Tunnel = &model.ApplicationTunnel{Port: 15088, PROXY: true}
	})
	web := service("server", "mesh", "198.18.100.1", 80, 8080, func(v *model.Service) {
		v.Waypoints = []model.WeightedGateway{{Gateway: gate, Weight: 1}}
	})
	m.state.Apply(model.Update{
		Workloads: []*model.Workload{client, server, waypoint},
		Services:  []*model.Service{web, service("gate", "outside", "198.18.100.9", 15008, 15008)},
		Policies:  []*model.Policy{only(waypoint.Identity())}, AddressesComplete: true, PoliciesComplete: true,
	})
	log := filepath.Join(m.Dir(), "tunnel.log")
	m.startEnvoy(m.envoyConfig(sandwichConfig, client, server, "LOG", log), "127.0.0.1:15088")
	near, far := m.serve("a", "mesh/client"), m.serve("b", "mesh/server", waypointPod)
	m.Serve("mesh/server", ":8080", e2e.Echo)

	if saw, err := m.listenFirst("mesh/client", authority); err != nil || saw != waypoint.Addresses[0].String() {
		t.Errorf("by way of the waypoint the server saw %s, want %v: %v", saw, waypoint.Addresses[0], err)
	}
	m.wantEnd("the client's proxy", near.Ended, waypoint.Identity(), authority)
	m.wantEnd("the server's proxy", far.Ended, server.Identity(), "198.18.2.10:8080")
	want := fmt.Sprintf("%s %s %s %s\n", client.Addresses[0], authority, client.Identity(), web.Hostname)
	m.Eventually("Envoy tells of the connection", func() error {
		said, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(said), want) {
			err = fmt.Errorf("it says %q, not %q", said, want)
		}
		return err
	})
}
