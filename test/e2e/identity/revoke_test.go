package identity

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
	"github.com/tacit-mesh/tacit/xds/kinds"
)

// tacitIdentity runs "tacit identity" on the manifests of the mesh.
func tacitIdentity(t *testing.T, m *e2e.Mesh, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(m.Context(), m.Executable("tacit"), append(append([]string{"identity"}, args...), "--from="+m.Manifests())...)
	cmd.Env = append(os.Environ(), "SUDO_USER=alice")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// dialFrom opens a connection that stays, from a pod to an echo server.
func dialFrom(t *testing.T, m *e2e.Mesh, pod, address string) *net.TCPConn {
	t.Helper()
	c, err := m.Dial(pod, address)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		t.Fatal(err)
	}
	for b := []byte{0}; b[0] != '\n'; { // the server's first line, and no more
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func works(t *testing.T, c *net.TCPConn) {
	t.Helper()
	answer := make([]byte, 4)
	_, err := c.Write([]byte("ping"))
	if err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err != nil || string(answer) != "ping" {
		t.Errorf("a live connection that nothing forbids: %q, %v", answer, err)
	}
}

// An identity that is revoked is out of the mesh at once, as a client and as a
// server, on live connections and on new ones, and nobody else is. That ends
// by itself, or when it is restored.
func TestIdentityIsRevoked(t *testing.T) {
	m := e2e.Start(t)
	const near = "198.18.1.20:8080"
	m.Serve("mesh/server", ":8080", e2e.Echo)
	m.Serve("mesh/near", ":8080", e2e.Echo)
	refused := func(pod, address string) {
		t.Helper()
		m.Eventually(pod+" is refused", func() error {
			if _, err := m.Call(pod, address); err == nil {
				return errors.New("it is served")
			}
			return nil
		})
	}
	served := func(pod, address string) {
		t.Helper()
		m.Eventually(pod+" is served", func() error {
			_, err := m.Call(pod, address)
			return err
		})
	}

	t.Run("a client", func(t *testing.T) {
		const id = "spiffe://cluster.local/ns/mesh/sa/client"
		across, local, other := dialFrom(t, m, "mesh/client", server), dialFrom(t, m, "mesh/client", near), dialFrom(t, m, "mesh/near", server)
		tacitIdentity(t, m, "revoke", id, "--for=1h", "--reason=key leaked")
		isReset(t, across)
		isReset(t, local)
		refused("mesh/client", server)
		refused("mesh/twin", near)
		works(t, other)
		if _, err := m.Call("mesh/near", server); err != nil {
			t.Errorf("somebody else: %v", err)
		}
		reasons := ""
		for _, d := range m.Connections("b", "denied", "mesh/client", "") {
			reasons += d.Reason + "\n"
		}
		if want := "denied by policy tacit-system/revoked_identity_revoked-mesh-client-"; !strings.Contains(reasons, want) {
			t.Errorf("the server's node says %q, want %q", reasons, want)
		}
		var list struct{ RevokedIdentities []kinds.RevokedIdentity }
		if err := json.Unmarshal([]byte(tacitIdentity(t, m, "list", "-o=json")), &list); err != nil || len(list.RevokedIdentities) != 1 {
			t.Fatalf("list: %+v, %v", list, err)
		}
		if r := list.RevokedIdentities[0].Spec; r.By != "alice" || r.Reason != "key leaked" || r.Since == nil || r.Until == nil {
			t.Errorf("recorded: %+v", r)
		}
		tacitIdentity(t, m, "restore", id)
		served("mesh/client", server)
		served("mesh/twin", near)
	})
	t.Run("a server", func(t *testing.T) {
		const id = "spiffe://cluster.local/ns/mesh/sa/server"
		to, other := dialFrom(t, m, "mesh/client", server), dialFrom(t, m, "mesh/client", near)
		const life = 20 * time.Second
		began := time.Now()
		tacitIdentity(t, m, "revoke", id, "--for="+life.String(), "--reason=a test of its end")
		isReset(t, to)
		refused("mesh/client", server)
		works(t, other)
		ctx, cancel := context.WithTimeout(t.Context(), life+e2e.Patience)
		defer cancel()
		if err := world.Poll(ctx, func() error { _, err := m.Call("mesh/client", server); return err }); err != nil {
			t.Errorf("it does not end by itself: %v", err)
		}
		if took := time.Since(began); took < life-time.Second { // its end is of whole seconds
			t.Errorf("a revocation for %v ended after %v", life, took)
		}
	})
}
