package istio

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/servers"
	"github.com/tacit-mesh/tacit/test/world"
)

const (
	// istiodPod is one by whose address nodes reach istiod.
	istiodPod = "outside/target"
	istiodAt  = "198.18.2.30:15012"
	clientIP  = "198.18.1.10"
	nearIP    = "198.18.1.20"
	serverIP  = "198.18.2.10"
	server2IP = "198.18.2.11"
	plainIP   = "198.18.1.30"
	serverVIP = "10.96.7.1"
)

// nodes runs the programs of two nodes, with nobody but istiod to say what the
// mesh is and nobody but Istio's CNI agent to say which pods are in it.
func (m *mesh) nodes() {
	m.t.Helper()
	m.Serve(istiodPod, ":15012", m.toIstiod)
	roots, err := os.ReadFile(m.roots())
	m.must(err)
	m.Reconfigure(func(c *world.Config) {
		c.Control = &world.ControlPlane{Roots: roots, Token: m.proxyToken, Args: func(node string) []string {
			return []string{
				"--xds=" + istiodAt, "--ca=" + istiodAt, "--server-name=" + servers.IstiodName, "--cluster-id=" + servers.IstiodCluster,
				"--pod=" + system + "/" + account + "-" + node, "--direct-local=false", "--dns-upstream=" + m.upstream(),
			}
		}}
	})
	for _, node := range []string{"a", "b"} {
		m.introduce(node)
		m.must(m.Node(node).StartProxy(m.context()))
	}
	for _, pod := range m.Pods() {
		if strings.HasPrefix(pod.Key, "mesh/") {
			m.Serve(pod.Key, ":8080", e2e.Echo)
			m.Serve(pod.Key, ":9090", e2e.Echo)
		}
	}
	m.paths()
	m.enforced()
	m.names()
	m.restarted()
	m.mixed()
}

// toIstiod passes a connection on.
func (m *mesh) toIstiod(c *net.TCPConn) {
	istiod, err := net.Dial("tcp", m.istiod.Address)
	if err != nil {
		return // it is away
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		_, _ = io.Copy(istiod, c)
		_ = istiod.Close()
	})
	_, _ = io.Copy(c, istiod)
	_ = c.Close()
	sending.Wait()
}

// upstream is a file of DNS servers, with none that answers.
func (m *mesh) upstream() string {
	path := filepath.Join(m.Dir(), "resolv.conf")
	m.must(os.WriteFile(path, []byte("nameserver 198.18.0.1\n"), 0o644))
	return path
}

// enrol names a pod to who plays ztunnel.
func (m *mesh) enrol(conn *zdstest.Conn, pod *world.Pod) error {
	namespace, name, _ := strings.Cut(pod.Key, "/")
	object, err := m.cluster.Client.CoreV1().Pods(namespace).Get(m.context(), name, metav1.GetOptions{})
	m.must(err)
	info := &protocol.WorkloadInfo{Namespace: namespace, Name: name, ServiceAccount: pod.ServiceAccount()}
	return conn.Add(string(object.UID), info, pod.NetnsPath())
}

// paths are those between nodes, on one, and from outside, by address and by
// what istiod says of services.
func (m *mesh) paths() {
	m.t.Helper()
	const opened = "istio_tcp_connections_opened_total"
	for name, tt := range map[string]struct {
		node, from, to, sees, security string
	}{
		"another node":            {"b", "mesh/client", serverIP + ":8080", clientIP, "mutual_tls"},
		"another node, IPv6":      {"b", "mesh/client", "[fd00:7ac1:2::10]:8080", "fd00:7ac1:1::10", "mutual_tls"},
		"a service, named port":   {"b", "mesh/client", serverVIP + ":80", clientIP, "mutual_tls"},
		"the same node":           {"a", "mesh/client", nearIP + ":8080", clientIP, "mutual_tls"},
		"back":                    {"a", "mesh/server", nearIP + ":8080", serverIP, "mutual_tls"},
		"from outside":            {"b", "outside/plain", serverIP + ":8080", plainIP, "unknown"},
		"from outside, same node": {"a", "outside/plain", nearIP + ":8080", plainIP, "unknown"},
	} {
		before := m.Metric(tt.node, opened, "reporter=destination", "connection_security_policy="+tt.security)
		if saw, err := m.Call(tt.from, tt.to); err != nil || saw != tt.sees {
			m.t.Errorf("%s: the server saw %s, want %s: %v", name, saw, tt.sees, err)
		}
		if n := m.Metric(tt.node, opened, "reporter=destination", "connection_security_policy="+tt.security) - before; n != 1 {
			m.t.Errorf("%s: the destination's proxy counts %v connections as %s, want 1", name, n, tt.security)
		}
	}
	if n := m.Metric("a", opened, "reporter=source", "destination_service=server.mesh.svc.cluster.local", "destination_principal="+serverID.String()); n != 1 {
		m.t.Errorf("the client's proxy counts %v connections to the service, want 1", n)
	}
	m.presented()
}

// presented looks at the certificate that a pod's proxy shows: istiod's.
func (m *mesh) presented() {
	m.t.Helper()
	text, err := os.ReadFile(m.roots())
	m.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	tcp, err := m.Dial("outside/plain", serverIP+":15008")
	m.must(err)
	seen := errors.New("no certificate was shown")
	c := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, VerifyConnection: func(s tls.ConnectionState) error {
		leaf, others := s.PeerCertificates[0], x509.NewCertPool()
		for _, c := range s.PeerCertificates[1:] {
			others.AddCert(c)
		}
		_, seen = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != serverID.String() {
			m.t.Errorf("the server's certificate is one of %v", leaf.URIs)
		}
		return nil
	}})
	_ = c.HandshakeContext(m.context())
	if seen != nil {
		m.t.Error(seen)
	}
}

// restarted has istiod end and come back while pods talk: no connection fails,
// and what was said of the mesh meanwhile is learned.
func (m *mesh) restarted() {
	m.t.Helper()
	stop := m.talk(
		call{"mesh/client", serverVIP + ":80"}, call{"mesh/twin", serverIP + ":8080"}, call{"mesh/server", nearIP + ":8080"}, call{"outside/plain", server2IP + ":8080"},
	)
	m.istiod.Kill()
	late := policy{"AuthorizationPolicy", "mesh", "late", "{selector: {matchLabels: {app: server2}}, action: DENY, rules: [{from: [{source: {principals: [\"*/sa/near\"]}}]}]}"}
	m.apply(late.yaml())
	m.istiod.Start()
	m.eventually("a policy from while istiod was away", func() error { return m.denied(call{"mesh/near", server2IP + ":8080"}) })
	stop("with istiod restarting")
	m.shown(late)
	m.withdraw(late)
}
