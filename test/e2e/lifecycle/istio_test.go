package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// Where nodes answer as with ztunnel.
const ztunnelAdmin, agentMetrics = "127.0.0.1:15000", "127.0.0.1:15013"

// underIstio is a mesh whose agents have the pods from who plays Istio's CNI
// agent, by node.
func underIstio(t *testing.T) (*e2e.Mesh, map[string]*istio) {
	t.Helper()
	m, agents := e2e.Build(t, world.Config{
		ZDS: true, ProxyArgs: []string{"--istio-admin=" + ztunnelAdmin}, AgentArgs: []string{"--metrics=" + agentMetrics},
	}), map[string]*istio{}
	must(t, m.StartControl(m.Context()))
	for _, node := range m.Nodes() {
		i := &istio{Mesh: m, t: t, node: node}
		agents[node.Name] = i
		i.listen()
		must(t, node.StartAgent(m.Context()))
		for _, pod := range m.Pods() {
			if pod.Node == node && strings.HasPrefix(pod.Key, "mesh/") {
				must(t, zdstest.Capture(pod))
				i.pods = append(i.pods, pod)
			}
		}
		i.name(i.pods)
		must(t, node.StartProxy(m.Context()))
	}
	return m, agents
}

// istio plays the CNI agent of a node.
type istio struct {
	*e2e.Mesh
	t      *testing.T
	node   *world.Node
	socket *zdstest.Agent
	conn   *zdstest.Conn
	pods   []*world.Pod
}

func (i *istio) listen() {
	i.t.Helper()
	var err error
	i.socket, err = zdstest.Listen(i.node.ZDSSocket())
	must(i.t, err)
	i.t.Cleanup(i.end)
}

// end has it go away.
func (i *istio) end() {
	_ = i.socket.Close()
	if i.conn != nil {
		_ = i.conn.Close()
	}
}

// name tells the node's agent that these are all pods there are.
func (i *istio) name(pods []*world.Pod) {
	i.t.Helper()
	var err error
	i.conn, err = i.socket.Accept(i.Context())
	must(i.t, err)
	for _, pod := range pods {
		namespace, name, _ := strings.Cut(pod.Key, "/")
		must(i.t, i.conn.Add(manifests.PodUID("", namespace, name), &protocol.WorkloadInfo{
			Namespace: namespace, Name: name, ServiceAccount: pod.ServiceAccount(),
		}, pod.NetnsPath()))
	}
	must(i.t, i.conn.SnapshotSent())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An agent that starts while Istio's is away goes on with the pods that the
// proxy knows, new connections included; those that Istio's does not name when
// it is back are let go.
func TestAgentWithoutIstio(t *testing.T) {
	m, agents := underIstio(t)
	serveEverywhere(m)
	i := agents["a"]
	i.end()
	must(t, i.node.Agent().Kill())
	must(t, i.node.StartAgent(m.Context()))
	// More than there are sockets left from the agent before.
	for range 20 {
		for from, to := range map[string]string{"mesh/client": "198.18.2.10:8080", "mesh/twin": "198.18.2.10:8080", "outside/plain": "198.18.1.20:8080"} {
			if _, err := m.Call(from, to); err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
		}
	}
	i.listen()
	left := slices.DeleteFunc(slices.Clone(i.pods), func(p *world.Pod) bool { return p.Key == "mesh/twin" })
	i.name(left)
	m.Eventually("the pod that is not named is let go", func() error {
		_, err := m.Call("mesh/twin", "198.18.2.10:8080")
		if err == nil {
			return errors.New("it is served")
		}
		return nil
	})
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err != nil {
		t.Error(err)
	}
}

// Under Istio's CNI agent connections go over mutual TLS as ever, and the proxy
// has no privilege there either.
func TestUnderIstio(t *testing.T) {
	m, _ := underIstio(t)
	wantUnprivileged(t, m)
	serveEverywhere(m)
	for name, tt := range map[string]struct{ node, from, to, client string }{
		"another node, IPv4":       {"b", "mesh/client", "198.18.2.10:8080", "198.18.1.10"},
		"another node, IPv6":       {"b", "mesh/client", "[fd00:7ac1:2::10]:8080", "fd00:7ac1:1::10"},
		"the same node":            {"a", "mesh/client", "198.18.1.20:8080", "198.18.1.10"},
		"from outside of the mesh": {"b", "outside/plain", "198.18.2.10:8080", "198.18.1.30"},
	} {
		before := m.Metric(tt.node, "istio_tcp_connections_opened_total", "reporter=destination")
		saw, err := m.Call(tt.from, tt.to)
		if err != nil || saw != tt.client {
			t.Errorf("%s: the server saw %s, want %s: %v", name, saw, tt.client, err)
		}
		if n := m.Metric(tt.node, "istio_tcp_connections_opened_total", "reporter=destination") - before; n != 1 {
			t.Errorf("%s: the destination's proxy saw %v connections", name, n)
		}
	}
	if n := m.Metric("b", "istio_tcp_connections_opened_total", "reporter=destination", "connection_security_policy=mutual_tls"); n != 2 {
		t.Errorf("%v connections between the nodes were mutual TLS, want 2", n)
	}
}

// Istio's own dashboard of ztunnel, and istioctl, find what they ask for.
func TestShownAsZtunnel(t *testing.T) {
	m, _ := underIstio(t)
	serveEverywhere(m)
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err != nil {
		t.Fatal(err)
	}
	must(t, m.Control().Kill())
	must(t, m.StartControl(m.Context()))
	ask := func(address string) string {
		said, err := m.Node("a").HTTP().Get("http://" + address)
		must(t, err)
		defer said.Body.Close()
		text, err := io.ReadAll(said.Body)
		must(t, err)
		return string(text)
	}
	m.Eventually("the control plane is connected again", func() error {
		shown := ask("127.0.0.1:15020/stats/prometheus") + ask(agentMetrics+"/metrics")
		for _, series := range []string{
			`istio_build\{component="ztunnel",tag="[^"]+"\} 1`,
			`istio_tcp_connections_opened_total\{.*\} [1-9]`, `istio_tcp_connections_closed_total\{.*\} [1-9]`,
			`istio_tcp_sent_bytes_total\{.*\} [1-9]`, `istio_tcp_received_bytes_total\{.*\} [1-9]`,
			`istio_xds_connection_terminations_total\{reason="Reconnect"\} [1-9]`,
			`istio_xds_message_total\{url="type.googleapis.com/istio.workload.Address"\} [1-9]`,
			`istio_xds_message_bytes_total\{url="type.googleapis.com/istio.workload.Address"\} [1-9]`,
			`workload_manager_active_proxy_count [1-9]`, `workload_manager_pending_proxy_count 0`,
		} {
			if !regexp.MustCompile(`(?m)^` + series).MatchString(shown) {
				return fmt.Errorf("no series %s in\n%s", series, shown)
			}
		}
		return nil
	})
	if dump := ask(ztunnelAdmin + "/config_dump"); !strings.Contains(dump, `"name":"client"`) {
		t.Errorf("the dump is %s", dump)
	}
}
