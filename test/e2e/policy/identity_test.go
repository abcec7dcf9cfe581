package policy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// A pod whose network namespace does not hold its address gets nothing that
// would be that pod's: it is not captured and not served. Others are.
func TestAddressOfAnotherNamespace(t *testing.T) {
	m := e2e.Start(t, peerAuthentication("mesh", "default", "{mtls: {mode: STRICT}}"))
	m.Serve("mesh/server", ":8080", e2e.Echo)
	agent := m.Node("a").Agent()
	mark := agent.Mark()
	if err := os.Symlink("outside_plain", filepath.Join(m.NetnsDir(), "mesh_impostor")); err != nil {
		t.Fatal(err)
	}
	manifest := strings.NewReplacer("name: twin", "name: impostor", "198.18.1.11", "198.18.1.77", "fd00:7ac1:1::11", "fd00:7ac1:1::77").
		Replace(pod("twin", "{tacit.mesh/redirection: enabled}", "{app: client}"))
	if err := os.WriteFile(filepath.Join(m.Manifests(), "impostor.yaml"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	line := logged(t, m, agent, mark, map[string]any{"level": "error", "pod": "mesh/impostor"})
	if text, _ := line["error"].(string); !strings.Contains(text, "does not hold the pod's address 198.18.1.77 (it holds ") {
		t.Errorf("the agent says %q", text)
	}
	var status struct {
		Sections struct{ Pods []struct{ Pod string } }
	}
	if err := m.Admin("a", "/status", &status); err != nil {
		t.Fatal(err)
	}
	if pods := fmt.Sprint(status.Sections.Pods); pods != "[{mesh/client} {mesh/near} {mesh/twin}]" {
		t.Errorf("node a serves %s", pods)
	}
	if _, err := m.Call("outside/plain", server); !denied(err) {
		t.Errorf("the impostor's call, which can only come without an identity: %v, want a reset", err)
	}
	if _, err := m.Call("mesh/twin", server); err != nil {
		t.Errorf("another pod's call: %v", err)
	}
}

// A node gets certificates for the identities of its own pods and no others.
func TestCertificatesOfOtherNodes(t *testing.T) {
	m := e2e.Start(t)
	for _, test := range []struct {
		name, node, account string
		token               bool
		want                codes.Code
	}{
		{"of its own pod", "a", "client", true, codes.OK},
		{"of a pod on the other node", "a", "server", true, codes.PermissionDenied},
		{"of a pod that is not enrolled", "a", "plain", true, codes.PermissionDenied},
		{"of nobody", "a", "nobody", true, codes.PermissionDenied},
		{"without a token", "a", "client", false, codes.Unauthenticated},
	} {
		t.Run(test.name, func(t *testing.T) {
			mark := m.Control().Mark()
			id, token := "spiffe://cluster.local/ns/mesh/sa/"+test.account, ""
			if test.token {
				token = m.Token(test.node)
			}
			csr, _ := m.CSR(id)
			_, err := m.Certify(m.Node(test.node), token, id, csr)
			if status.Code(err) != test.want {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if test.want == codes.PermissionDenied {
				logged(t, m, m.Control(), mark, map[string]any{"msg": "certificate refused", "node": test.node})
			}
		})
	}
}

// Certificates are renewed while connections live and new ones are made: at
// no time is one on the wire that has ended.
func TestRenewal(t *testing.T) {
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--certificate-ttl=10s"}})
	m.Serve("mesh/server", ":8080", e2e.Echo)
	c := dialLive(t, m, "mesh/client", server)
	first := presented(t, m, "198.18.2.10:15008")
	if life := time.Until(first.NotAfter); life > 10*time.Second {
		t.Fatalf("the certificate lives for %v", life)
	}
	m.Eventually("the first certificate has ended", func() error {
		c.works(t)
		if _, err := m.Call("mesh/client", server); err != nil {
			t.Fatalf("a new connection, %v before the first certificate ends: %v", time.Until(first.NotAfter), err)
		}
		now := presented(t, m, "198.18.2.10:15008")
		switch left := time.Until(first.NotAfter); {
		case time.Until(now.NotAfter) <= 0:
			t.Fatalf("the certificate on the wire has ended at %v", now.NotAfter)
		case left > 0:
			return fmt.Errorf("%v left", left)
		case now.SerialNumber.Cmp(first.SerialNumber) == 0:
			t.Error("it is still the first one")
		}
		return nil
	})
	c.works(t)
}

// presented is the certificate that a pod's proxy shows to whoever connects.
func presented(t *testing.T, m *e2e.Mesh, address string) *x509.Certificate {
	t.Helper()
	tcp, err := m.Pod("outside/plain").Dial(m.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	c := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err := c.HandshakeContext(m.Context()); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates[0]
}
