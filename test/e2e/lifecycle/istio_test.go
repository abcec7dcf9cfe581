package lifecycle

import (
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// Under Istio's CNI agent connections go over mutual TLS as ever, and the proxy
// has no privilege there either.
func TestUnderIstio(t *testing.T) {
	m := e2e.Build(t, world.Config{ZDS: true})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(m.StartControl(m.Context()))
	for _, node := range m.Nodes() {
		istio, err := zdstest.Listen(node.ZDSSocket())
		must(err)
		defer istio.Close()
		must(node.StartAgent(m.Context()))
		conn, err := istio.Accept(m.Context())
		must(err)
		defer conn.Close()
		for _, pod := range m.Pods() {
			namespace, name, _ := strings.Cut(pod.Key, "/")
			if pod.Node != node || namespace != "mesh" {
				continue
			}
			must(zdstest.Capture(pod))
			must(conn.Add(manifests.PodUID("", namespace, name), &protocol.WorkloadInfo{
				Namespace: namespace, Name: name, ServiceAccount: pod.ServiceAccount(),
			}, pod.NetnsPath()))
		}
		must(conn.SnapshotSent())
		must(node.StartProxy(m.Context()))
	}
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
