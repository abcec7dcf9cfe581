package waypoint

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/servers/envoy"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

// waypointConfig terminates HBONE for one authority alone, and opens HBONE to
// one workload.
const waypointConfig = `
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: {"@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
static_resources:
  listeners:
  - name: hbone
    address: {socket_address: {address: 0.0.0.0, port_value: 15008}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_params: {tls_minimum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: CERT}, private_key: {filename: KEY}}]
            validation_context:
              trusted_ca: {filename: ROOT}
              match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "CLIENT"}}]
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: only
              domains: ["AUTHORITY"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: inside, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
  - name: inside
    internal_listener: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: inside
          cluster: server
          tunneling_config: {hostname: "TARGET"}
  clusters:
  - name: inside
    load_assignment:
      cluster_name: inside
      endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: inside}}}}]}]
  - name: server
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {allow_connect: true}}
    load_assignment:
      cluster_name: server
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: SERVER, port_value: 15008}}}}]}]
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates: [{certificate_chain: {filename: CERT}, private_key: {filename: KEY}}]
          validation_context:
            trusted_ca: {filename: ROOT}
            match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "DESTINATION"}}]
`

const (
	waypointPod = "outside/target" // captured by nobody
	authority   = "198.18.100.1:80"
)

// startEnvoy runs a waypoint in its pod and waits until it listens.
func (m *mesh) startEnvoy(client, server *model.Workload) {
	m.t.Helper()
	program, err := envoy.Program(m.t.Context(), os.Stderr)
	if err != nil {
		m.t.Fatal(err)
	}
	own := m.ca.Issue(m.t, m.workload(waypointPod).Identity())
	key, err := x509.MarshalPKCS8PrivateKey(own.Certificate.PrivateKey)
	if err != nil {
		m.t.Fatal(err)
	}
	config := strings.NewReplacer(
		"CERT", m.write("waypoint.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Leaf.Raw})),
		"KEY", m.write("waypoint.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		"ROOT", m.write("root.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.ca.Root.Raw})),
		"CLIENT", client.Identity().String(), "DESTINATION", server.Identity().String(),
		"AUTHORITY", authority, "TARGET", netip.AddrPortFrom(server.Addresses[0], 8080).String(), "SERVER", server.Addresses[0].String(),
	).Replace(waypointConfig)
	cmd := m.Pod(waypointPod).Command(m.t.Context(), program, "--config-path", m.write("envoy.yaml", []byte(config)), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn")
	p, err := world.Launch("envoy", filepath.Join(m.Dir(), "logs", "envoy.log"), cmd)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			m.t.Error(err)
		}
		if log, err := os.ReadFile(p.Log); err != nil || m.t.Failed() {
			m.t.Logf("envoy says\n%s%v", log, err)
		}
	})
	m.Eventually("Envoy listens", func() error {
		select {
		case <-p.Ended():
			m.t.Fatal("Envoy has ended")
		default:
		}
		c, err := m.Dial("outside/plain", netip.AddrPortFrom(m.Pod(waypointPod).Address(), 15008).String())
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// A service's connections and a workload's go to the waypoint, which gets the
// address that was asked for, and from there to the workload, which sees the
// waypoint's identity; without the waypoint they go nowhere.
func TestEnvoy(t *testing.T) {
	m := start(t)
	const key = "mesh/server.mesh.svc.cluster.local"
	gate := model.Gateway{Service: "outside/gate.outside.svc.cluster.local", Port: 15008}
	port := func(service, target uint16) []model.Port { return []model.Port{{Service: service, Target: target}} }
	client, server := m.workload("mesh/client"), m.workload("mesh/server", func(w *model.Workload) { w.Services = map[string][]model.Port{key: nil} })
	waypoint := m.workload(waypointPod, func(w *model.Workload) {
		w.Protocol, w.Services = model.ProtocolTCP, map[string][]model.Port{gate.Service: nil}
	})
	service := func(name, namespace, vip string, ports []model.Port, edits ...func(*model.Service)) *model.Service {
		v := &model.Service{Name: name, Namespace: namespace, Hostname: name + "." + namespace + ".svc.cluster.local", Ports: ports,
			Addresses: []model.NetworkAddress{{Network: network, Prefix: netip.PrefixFrom(addr(vip), 32)}}}
		for _, edit := range edits {
			edit(v)
		}
		return v
	}
	web := service("server", "mesh", "198.18.100.1", port(80, 8080), func(v *model.Service) {
		v.Waypoints = []model.WeightedGateway{{Gateway: gate, Weight: 1}}
	})
	m.state.Apply(model.Update{
		Workloads: []*model.Workload{client, server, waypoint},
		Services:  []*model.Service{web, service("gate", "outside", "198.18.100.9", port(15008, 15008))},
		Policies: []*model.Policy{{Namespace: "mesh", Name: "only-the-waypoint", Scope: model.ScopeNamespace, Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{
			Principals: []model.StringMatch{{Value: strings.TrimPrefix(waypoint.Identity().String(), "spiffe://")}},
		}}}}}}}},
		AddressesComplete: true, PoliciesComplete: true,
	})
	m.startEnvoy(client, server)
	near, far := m.serve("a", "mesh/client"), m.serve("b", "mesh/server")
	m.Serve("mesh/server", ":8080", e2e.Echo)

	if saw, err := m.Call("mesh/client", authority); err != nil || saw != waypoint.Addresses[0].String() {
		t.Errorf("by way of the waypoint the server saw %s, want %v: %v", saw, waypoint.Addresses[0], err)
	}
	m.wantEnd("the client's proxy", near.Ended, waypoint.Identity(), authority)
	m.wantEnd("the server's proxy", far.Ended, server.Identity(), "198.18.2.10:8080")
	if from := far.Ended()[0].Source.Identity; from != waypoint.Identity().String() {
		t.Errorf("the server's proxy knows the client as %s", from)
	}

	// Straight to the pod the policy is in the way; with a waypoint of its own
	// it is not. Envoy knows that one authority.
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err == nil {
		t.Error("the server lets in others than the waypoint")
	}
	server = m.workload("mesh/server", func(w *model.Workload) { w.Waypoint = &gate })
	m.state.Apply(model.Update{Workloads: []*model.Workload{server}})
	before := len(near.Ended())
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err == nil {
		t.Error("the waypoint answers for what it does not know")
	}
	m.Eventually("the waypoint refuses", func() error {
		ended := near.Ended()
		if len(ended) == before || ended[len(ended)-1].Destination.Workload != waypointPod {
			return fmt.Errorf("%+v", ended)
		}
		return nil
	})

	m.state.Apply(model.Update{RemovedAddresses: []string{waypoint.UID}})
	if _, err := m.Call("mesh/client", authority); err == nil {
		t.Error("without its waypoint the service is reached")
	}
}

// wantEnd waits for a connection to have ended at that proxy as expected.
func (m *mesh) wantEnd(who string, ended func() []admin.Connection, destination model.Identity, to string) {
	m.t.Helper()
	m.Eventually(who+" tells of the connection", func() error {
		for _, c := range ended() {
			if c.Destination.Identity == destination.String() && c.Destination.Address.String() == to && c.Security == "mtls" {
				return nil
			}
		}
		return fmt.Errorf("%+v", ended())
	})
}
