package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/suite"
	"github.com/tacit-mesh/tacit/test/servers/envoy"
	"github.com/tacit-mesh/tacit/test/world"
)

// peer is a pair of proxies of others, as sidecars: each pod's connections are
// redirected to the proxy in it, at the client those that it opens and at the
// server those that come. Both ask for a certificate.
type peer struct {
	name    string // of the path
	pods    string // theirs begin with it
	config  *template.Template
	command func(file string) []string
	http    bool // parse HTTP at the server and decide about each request
}

// side is what a configuration is made of.
type side struct {
	Server, HTTP bool
	Ports        []uint16
	Address      netip.Addr // of the server
	Dir, Name    string     // of certificate and key
}

// Between is a port between the two proxies.
func (side) Between(port uint16) uint16 { return port + 1000 }

// Inbound is where the server's proxy listens, and gets what comes to such a port.
func (side) Inbound(port uint16) uint16 { return port + 2000 }

// HTTP2 says whether a port's server is asked in HTTP/2.
func (side) HTTP2(port uint16) bool { return port == load.GRPCPort || port == load.FramesPort }

var peerPorts = []uint16{load.EchoPort, load.UpPort, load.DownPort, load.HTTPPort, load.GRPCPort, load.FramesPort, suite.RedisPort, suite.PostgresPort}

// With the cipher that Go chooses; OpenSSL's own choice is a slower one.
var haproxyConfig = template.Must(template.New("haproxy").Parse(`
global
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
{{range .Ports}}
listen port{{.}}
{{- if $.Server}}
  bind {{$.Address}}:{{$.Inbound .}} ssl crt {{$.Dir}}/{{$.Name}}.pem ca-file {{$.Dir}}/ca.pem verify required ssl-min-ver TLSv1.3
  server app 127.0.0.1:{{.}}
{{- else}}
  bind 127.0.0.1:{{.}}
  server peer {{$.Address}}:{{$.Between .}} ssl crt {{$.Dir}}/{{$.Name}}.pem ca-file {{$.Dir}}/ca.pem verify required ssl-min-ver TLSv1.3
{{- end}}
{{end}}`))

// YAML takes JSON as well, which needs no indentation.
var envoyConfig = template.Must(template.New("envoy").Parse(`
{{define "tls"}}"common_tls_context": {"tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
  "tls_certificates": [{"certificate_chain": {"filename": "{{.Dir}}/{{.Name}}.pem"}, "private_key": {"filename": "{{.Dir}}/{{.Name}}.pem"}}],
  "validation_context": {"trusted_ca": {"filename": "{{.Dir}}/ca.pem"}}}{{end}}
{{define "tcp"}}{"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
  "stat_prefix": "port{{.}}", "cluster": "port{{.}}"}}{{end}}
{{define "http"}}{"name": "http", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
  "stat_prefix": "port{{.}}", "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "port{{.}}"}}]}]},
  "http_filters": [{"name": "rbac", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
    "rules": {"action": "ALLOW", "policies": {"methods": {"permissions": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}},
      {"header": {"name": ":method", "string_match": {"exact": "POST"}}}], "principals": [{"any": true}]}}}}},
    {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}{{end}}
{"static_resources": {
"listeners": [
{{- range $i, $port := .Ports}}{{if $i}},{{end}}
  {"name": "port{{$port}}",
{{- if $.Server}}
   "address": {"socket_address": {"address": "{{$.Address}}", "port_value": {{$.Inbound $port}}}},
   "filter_chains": [{"filters": [{{if $.HTTP}}{{template "http" $port}}{{else}}{{template "tcp" $port}}{{end}}],
    "transport_socket": {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
     "require_client_certificate": true, {{template "tls" $}}}}}]}
{{- else}}
   "address": {"socket_address": {"address": "127.0.0.1", "port_value": {{$port}}}},
   "filter_chains": [{"filters": [{{template "tcp" $port}}]}]}
{{- end}}
{{- end}}],
"clusters": [
{{- range $i, $port := .Ports}}{{if $i}},{{end}}
  {"name": "port{{$port}}", "connect_timeout": "10s",
{{- if and $.Server $.HTTP ($.HTTP2 $port)}} "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
   "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}},{{end}}
   "load_assignment": {"cluster_name": "port{{$port}}", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address":
{{- if $.Server}} {"address": "127.0.0.1", "port_value": {{$port}}}}}}]}]}}
{{- else}} {"address": "{{$.Address}}", "port_value": {{$.Between $port}}}}}}]}]},
   "transport_socket": {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", {{template "tls" $}}}}}
{{- end}}
{{- end}}]}}
`))

// peers are all that can be compared with; of the others it is noted that they
// are absent.
func (m *maker) peers(ctx context.Context) []peer {
	var found []peer
	if _, err := exec.LookPath("haproxy"); err != nil {
		m.absent = append(m.absent, "HAProxy: it is not in PATH")
	} else {
		found = append(found, peer{name: pathHAProxy, pods: "haproxy", config: haproxyConfig,
			command: func(file string) []string { return []string{"haproxy", "-q", "-db", "-f", file} }})
	}
	program, err := envoy.Program(ctx, io.Discard)
	if err != nil {
		m.absent = append(m.absent, fmt.Sprintf("Envoy: %v", err))
		return found
	}
	command := func(file string) []string {
		return []string{program, "--disable-hot-restart", "--log-level", "error", "-c", file}
	}
	return append(found,
		peer{name: suite.Envoy, pods: "envoy", config: envoyConfig, command: command},
		peer{name: suite.EnvoyHTTP, pods: "envoy-http", config: envoyConfig, command: command, http: true})
}

// fetchEnvoy is called outside of the world, from inside of which there is no way
// to anywhere. Without Envoy it is a peer that is absent.
func fetchEnvoy(ctx context.Context, progress io.Writer) {
	if _, err := envoy.Program(ctx, progress); err != nil {
		_, _ = fmt.Fprintln(progress, err)
	}
}

// startPeer starts the pair and returns its processes.
func (m *maker) startPeer(ctx context.Context, p peer) (pids []int, err error) {
	dir := filepath.Join(m.world.Dir(), p.pods)
	if err := errors.Join(os.MkdirAll(dir, 0o755), writeCertificates(dir)); err != nil {
		return nil, err
	}
	server := m.world.Pod("plain/" + p.pods + "-server")
	for _, pod := range []*world.Pod{server, m.world.Pod("plain/" + p.pods + "-client")} {
		s := side{Server: pod == server, HTTP: p.http, Ports: peerPorts, Address: server.Address(), Dir: dir, Name: "client"}
		if s.Server {
			s.Name = "server"
		}
		if p.http {
			s.Ports = []uint16{load.HTTPPort, load.GRPCPort, load.FramesPort}
		}
		var text strings.Builder
		if err := p.config.Execute(&text, s); err != nil {
			return nil, err
		}
		file := filepath.Join(dir, s.Name+".yaml")
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			return nil, err
		}
		if err := s.capture(ctx, pod); err != nil {
			return nil, err
		}
		command := p.command(file)
		cmd := pod.Command(ctx, command[0], command[1:]...)
		if err := m.started.start(cmd); err != nil {
			return nil, err
		}
		pids = append(pids, cmd.Process.Pid)
	}
	return pids, nil
}

// capture redirects to the proxy of this side what it is to carry.
func (s side) capture(ctx context.Context, pod *world.Pod) error {
	for _, port := range s.Ports {
		rule := []string{"OUTPUT", "--dst", s.Address.String(), "--dport", fmt.Sprint(port), "-j", "REDIRECT"}
		if s.Server {
			rule = []string{"PREROUTING", "--dport", fmt.Sprint(s.Between(port)), "-j", "REDIRECT", "--to-ports", fmt.Sprint(s.Inbound(port))}
		}
		if err := addRule(ctx, pod, rule...); err != nil {
			return err
		}
	}
	return nil
}

// addRule adds one about TCP to the pod's table nat.
func addRule(ctx context.Context, pod *world.Pod, rule ...string) error {
	args := append([]string{"-w", "-t", "nat", "-p", "tcp", "-A"}, rule...)
	if out, err := pod.Command(ctx, "iptables", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("iptables %s in pod %s: %w: %s", strings.Join(args, " "), pod.Key, err, out)
	}
	return nil
}
