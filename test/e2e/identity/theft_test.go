package identity

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// onlyNear lets nobody but the pod "near" call the server.
const onlyNear = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-near, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {principals: ["cluster.local/ns/mesh/sa/near"]}}]}]
`

// heir is a pod with the addresses that "near" had.
const heir = `
apiVersion: v1
kind: Pod
metadata: {name: heir, namespace: mesh, annotations: {tacit.mesh/redirection: enabled}}
spec:
  nodeName: a
  serviceAccountName: heir
  containers: [{name: app, image: none}]
status:
  podIPs: [{ip: "198.18.1.20"}, {ip: "fd00:7ac1:1::20"}]
`

// The pod "client" of node a, whose network namespace is the attacker's, gets
// neither a certificate of another pod nor what only that one may have.
func TestTheft(t *testing.T) {
	m := e2e.Start(t, onlyNear)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	const near, remote = "spiffe://cluster.local/ns/mesh/sa/near", "spiffe://cluster.local/ns/mesh/sa/server"
	attacker := m.Pod("mesh/client")
	refused := func(t *testing.T, what string, want codes.Code, from e2e.Place, token, id, csr string) {
		t.Helper()
		if _, err := m.Certify(from, token, id, csr); status.Code(err) != want {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	fails := func(t *testing.T, what, pod string) {
		t.Helper()
		if _, err := m.Call(pod, server); err == nil {
			t.Errorf("%s: the server takes it for the pod near", what)
		}
	}
	deniedAs := func(account string) (n int) {
		for _, d := range m.Connections("b", "denied", "", "mesh/server") {
			if d.Source.Identity == "spiffe://cluster.local/ns/mesh/sa/"+account {
				n++
			}
		}
		return n
	}
	if _, err := m.Call("mesh/near", server); err != nil {
		t.Fatal(err)
	}
	deniedByItsOwn := func(pod string) {
		t.Helper()
		m.Eventually(pod+" is denied by its own identity", func() error {
			if fails(t, pod, "mesh/"+pod); deniedAs(pod) == 0 {
				return errors.New("it has not been yet")
			}
			return nil
		})
	}
	deniedByItsOwn("client")

	t.Run("stolen token", func(t *testing.T) {
		csr, _ := m.CSR(near)
		refused(t, "none", codes.Unauthenticated, attacker, "", near, csr)
		refused(t, "a guess", codes.Unauthenticated, attacker, strings.Repeat("0", len(m.Token("a"))), near, csr)
		csr, _ = m.CSR(remote)
		refused(t, "of its own node, for a pod of the other one", codes.PermissionDenied, attacker, m.Token("a"), remote, csr)
		csr, _ = m.CSR(near)
		refused(t, "of its own node, for a pod of that", codes.PermissionDenied, attacker, m.Token("a"), near, csr)
	})
	t.Run("other node", func(t *testing.T) {
		csr, _ := m.CSR(near)
		refused(t, "of the other node, for a pod of its own", codes.PermissionDenied, attacker, m.Token("b"), near, csr)
		refused(t, "the same from the other node", codes.PermissionDenied, m.Node("b"), m.Token("b"), near, csr)
		csr, _ = m.CSR(remote)
		refused(t, "its own token, from the other node", codes.PermissionDenied, m.Node("b"), m.Token("a"), remote, csr)
	})
	t.Run("replayed message", func(t *testing.T) {
		theirs, key := m.CSR(remote) // as it came from node b
		refused(t, "with the node's own token", codes.PermissionDenied, attacker, m.Token("a"), remote, theirs)
		refused(t, "under another name", codes.InvalidArgument, attacker, m.Token("a"), "spiffe://cluster.local/ns/mesh/sa/client", theirs)
		refused(t, "whole, token and all", codes.PermissionDenied, attacker, m.Token("b"), remote, theirs)
		// From where a proxy may be, that brings a certificate for a key that stays
		// where it is.
		c, err := m.Certify(m.Node("a"), m.Token("b"), remote, theirs)
		if err != nil || !key.PublicKey.Equal(c.PublicKey) {
			t.Errorf("replayed whole from another node: %v", err)
		}
	})
	t.Run("a second connection to the agent", func(t *testing.T) {
		socket := filepath.Join(m.Node("a").RunDir(), "agent.sock")
		pose := func() error { return e2e.Pose(socket) }
		if err := attacker.Do(pose); err != nil {
			t.Errorf("as root: %v", err)
		}
		// To a socket in the file system all network namespaces are alike.
		if err := e2e.AsUser(world.ProxyUID, pose); err != nil {
			t.Errorf("as the proxy's user: %v", err)
		}
	})
	t.Run("another's address", func(t *testing.T) {
		if err := attacker.Do(func() error { return takeAddress("198.18.1.20/32") }); err != nil {
			t.Fatal(err)
		}
		var c *net.TCPConn
		err := attacker.Do(func() error {
			dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("198.18.1.20:0"))}
			conn, err := dialer.DialContext(m.Context(), "tcp", server)
			if err == nil {
				c = conn.(*net.TCPConn)
			}
			return err
		})
		if err == nil {
			_, err = e2e.Exchange(c)
		}
		if err == nil {
			t.Error("the server takes it for the pod whose address it has taken")
		}
		if _, err := m.Call("mesh/near", server); err != nil {
			t.Errorf("the pod whose address it is: %v", err)
		}
	})
	t.Run("an address that was another's", func(t *testing.T) {
		if err := m.Delete("Pod", "mesh/near"); err != nil {
			t.Fatal(err)
		}
		m.MustApply(heir)
		deniedByItsOwn("heir")
		csr, _ := m.CSR(near)
		m.Eventually("nobody has the identity of a pod that has gone", func() error {
			_, err := m.Certify(m.Node("a"), m.Token("a"), near, csr)
			if code := status.Code(err); code != codes.PermissionDenied {
				return fmt.Errorf("%v, want %v", code, codes.PermissionDenied)
			}
			return nil
		})
	})
}

// takeAddress gives the network namespace another address.
func takeAddress(address string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(lo, a)
}
