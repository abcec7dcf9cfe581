package waypoint

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

// ways are how a client reaches a server in the matrix.
var ways = []string{"same node", "two nodes", "plain", "service", "waypoint", "double HBONE"}

// Tacit and ztunnel, in every pair and by every way. It takes a ztunnel, whose
// program is named in ZTUNNEL; with TACIT_LONG alone, Tacit is both.
func TestZtunnel(t *testing.T) {
	program := os.Getenv("ZTUNNEL")
	for _, client := range []string{"tacit", "ztunnel"} {
		for _, server := range []string{"tacit", "ztunnel"} {
			for _, way := range ways {
				t.Run(client+" to "+server+", "+way, func(t *testing.T) {
					both := client == "tacit" && server == "tacit" && os.Getenv("TACIT_LONG") != ""
					if program == "" && !both {
						t.Skip("there is no ztunnel: name its program in ZTUNNEL")
					}
					reach(t, player{client, program}, player{server, program}, way)
				})
			}
		}
	}
}

// player is which proxy a node has.
type player struct{ who, program string }

func (p player) serve(m *mesh, node string, keys ...string) {
	m.t.Helper()
	if p.who == "tacit" {
		m.serve(node, keys...)
		return
	}
	m.ztunnel(p.program, node, keys...)
}

// reach has a client call a server by one of the ways.
func reach(t *testing.T, client, server player, way string) {
	m := start(t)
	there := &mesh{Mesh: m.Mesh, t: t, ca: m.ca, state: m.state}
	from, to, node := "mesh/client", "mesh/server", "b"
	if way == "same node" {
		to, node = "mesh/near", "a"
	}
	near, far := m.workload(from), m.workload(to, endpoint)
	address, saw := netip.AddrPortFrom(far.Addresses[0], 8080).String(), near.Addresses[0]
	update := model.Update{Workloads: []*model.Workload{near, far}, AddressesComplete: true, PoliciesComplete: true}
	web := service("server", "mesh", "198.18.100.1", 80, 8080)
	gate := m.workload(waypointPod, func(w *model.Workload) {
		w.Protocol, w.Services = model.ProtocolTCP, map[string][]model.Port{"outside/gate.outside.svc.cluster.local": nil}
	})
	gateway := model.Gateway{Network: network, Address: gate.Addresses[0], Port: 15008}
	listens := netip.AddrPortFrom(gate.Addresses[0], 15008).String()
	switch way {
	case "plain":
		far.Protocol = model.ProtocolTCP
	case "service":
		address, update.Services = authority, []*model.Service{web}
	case "waypoint":
		web.Waypoints = []model.WeightedGateway{{Gateway: gateway, Weight: 1}}
		address, saw = authority, gate.Addresses[0]
		update.Workloads, update.Services = append(update.Workloads, gate), []*model.Service{web}
		m.startEnvoy(m.envoyConfig(waypointConfig, near, far), listens)
	case "double HBONE":
		there.state = state.New()
		there.state.Apply(model.Update{Workloads: []*model.Workload{far}, Services: []*model.Service{web}, AddressesComplete: true, PoliciesComplete: true})
		gate.Network, gateway.Network = "far", "far"
		beyond := *web
		beyond.SANs = []string{far.Identity().String()}
		remote := &model.Workload{
			UID: "far/SplitHorizonWorkload/web", Namespace: "mesh", ServiceAccount: "default", TrustDomain: model.DefaultTrustDomain, Network: "far",
			Protocol: model.ProtocolHBONE, Capacity: 1, Services: far.Services, NetworkGateway: &gateway,
		}
		address, saw = authority, gate.Addresses[0]
		update.Workloads, update.Services = []*model.Workload{near, gate, remote}, []*model.Service{&beyond}
		m.startEnvoy(m.envoyConfig(gatewayConfig, near, far, "AUTHORITY", web.Hostname+":80", "BEHIND", "border"), listens)
	}
	m.state.Apply(update)
	switch {
	case node != "a":
		client.serve(m, "a", from)
		server.serve(there, node, to)
	case client == server:
		client.serve(m, "a", from, to)
	default: // both on one node, as while one takes the other's place
		client.serve(m, "a", from)
		server.serve(there, "b", to)
	}
	m.Serve(to, ":8080", e2e.Echo)
	got := ""
	m.Eventually("the server is reached", func() (err error) {
		got, err = m.Call(from, address)
		return err
	})
	if got != saw.String() {
		t.Errorf("the server saw %s, want %v", got, saw)
	}
}

// ztunnel runs one for pods of a node, which it gets as from Istio's CNI agent,
// with the mesh's state and certificates as from istiod.
func (m *mesh) ztunnel(program, node string, keys ...string) {
	m.t.Helper()
	// Where a node can reach it.
	l, err := m.Pod("outside/plain").Listen(":0")
	m.must(err)
	_, port, _ := strings.Cut(l.Addr().String(), "]:")
	from := &control{all: addressesOf(m.state.Snapshot())}
	root := from.start(m, l)
	at := "https://" + m.Pod("outside/plain").Address().String() + ":" + port
	socket := filepath.Join(m.Dir(), "ztunnel-"+node+".sock")
	agent, err := zdstest.Listen(socket)
	m.must(err)
	m.t.Cleanup(func() { _ = agent.Close() })

	cmd := m.Node(node).Command(m.t.Context(), program, "proxy", "ztunnel")
	cmd.Env = append(os.Environ(),
		"INPOD_UDS="+socket, "PROXY_MODE=shared", "NODE_NAME="+node, "CLUSTER_ID=cluster", "NETWORK="+network, "TRUST_DOMAIN="+model.DefaultTrustDomain,
		"POD_NAME=ztunnel-"+node, "POD_NAMESPACE=istio-system", "SERVICE_ACCOUNT=ztunnel", "INSTANCE_IP=127.0.0.1", "AUTH_TOKEN=nobody-asks",
		"XDS_ADDRESS="+at, "XDS_ROOT_CA="+root, "ALT_XDS_HOSTNAME="+controlName, "CA_ADDRESS="+at, "CA_ROOT_CA="+root, "ALT_CA_HOSTNAME="+controlName,
		"ISTIO_META_DNS_CAPTURE=false", "RUST_LOG=info",
	)
	p, err := world.Launch("ztunnel-"+node, filepath.Join(m.Dir(), "logs", "ztunnel-"+node+".log"), cmd)
	m.must(err)
	m.t.Cleanup(func() {
		_ = p.Kill()
		if log, err := os.ReadFile(p.Log); err != nil || m.t.Failed() {
			m.t.Logf("ztunnel of node %s says\n%s%v", node, log, err)
		}
	})
	conn, err := agent.Accept(m.Context())
	m.must(err)
	for _, key := range keys {
		pod, w := m.Pod(key), m.workload(key)
		m.must(zdstest.Capture(pod))
		m.must(conn.Add("uid-"+w.Name, &protocol.WorkloadInfo{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, pod.NetnsPath()))
	}
	m.must(conn.SnapshotSent())
}
