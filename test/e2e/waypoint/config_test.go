package waypoint

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/tacit-mesh/tacit/test/servers/envoy"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/model"
)

// hboneListener terminates HBONE for one authority alone, whose bytes go to a
// cluster.
const hboneListener = `
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
                route: {cluster: BEHIND, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
`

// waypointConfig opens HBONE to one workload for what comes by HBONE.
const waypointConfig = hboneListener + `
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

// gatewayConfig passes on to a proxy what comes by HBONE, as it is.
const gatewayConfig = hboneListener + `
  clusters:
  - name: border
    load_assignment:
      cluster_name: border
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: SERVER, port_value: 15008}}}}]}]
`

// sandwichConfig is given what comes by HBONE behind a header of the PROXY
// protocol, and connects to where it was to go.
const sandwichConfig = `
static_resources:
  listeners:
  - name: tunnel
    address: {socket_address: {address: 127.0.0.1, port_value: 15088}}
    listener_filters:
    - name: envoy.filters.listener.proxy_protocol
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
        rules: [{tlv_type: 208, on_tlv_present: {key: identity}}, {tlv_type: 209, on_tlv_present: {key: service}}]
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tunnel
          cluster: destination
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: LOG
              log_format:
                text_format_source: {inline_string: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS% %DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:identity)% %DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:service)%\n"}
  clusters:
  - name: destination
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
`

const (
	waypointPod = "outside/target"
	authority   = "198.18.100.1:80"
)

// envoyConfig fills in a configuration of an Envoy that talks to a client and a
// server.
func (m *mesh) envoyConfig(config string, client, server *model.Workload, more ...string) string {
	m.t.Helper()
	cert, key, root := m.writeIdentity(m.workload(waypointPod).Identity())
	return strings.NewReplacer(append(more,
		"CERT", cert, "KEY", key, "ROOT", root, "CLIENT", client.Identity().String(), "DESTINATION", server.Identity().String(),
		"AUTHORITY", authority, "TARGET", netip.AddrPortFrom(server.Addresses[0], 8080).String(), "SERVER", server.Addresses[0].String(),
		"BEHIND", "inside",
	)...).Replace(config)
}

// startEnvoy runs Envoy in its pod and waits until it listens.
func (m *mesh) startEnvoy(config, listens string) {
	m.t.Helper()
	program, err := envoy.Program(m.t.Context(), os.Stderr)
	if err != nil {
		m.t.Fatal(err)
	}
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
		c, err := m.Dial(waypointPod, listens)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}
