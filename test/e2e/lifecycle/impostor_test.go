package lifecycle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// Who is not the proxy gets nothing from the agent, and who is not the agent
// nothing from the proxy. Traffic takes no notice.
func TestImpostors(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	node := m.Node("a")
	socket := filepath.Join(node.RunDir(), "agent.sock")
	l := startLoad(t, m)

	t.Run("another user", func(t *testing.T) {
		mark := node.Agent().Mark()
		if err := e2e.Pose(socket); err != nil {
			t.Error(err)
		}
		logs(t, m, node.Agent(), mark, "refused a process that connects as the proxy", "user 0")
	})
	t.Run("the proxy's user outside of its control group", func(t *testing.T) {
		mark := node.Agent().Mark()
		if err := e2e.AsUser(world.ProxyUID, func() error { return e2e.Pose(socket) }); err != nil {
			t.Error(err)
		}
		logs(t, m, node.Agent(), mark, "refused a process that connects as the proxy", "control group")
	})
	t.Run("a user without access", func(t *testing.T) {
		err := e2e.AsUser(world.ProxyUID+1, func() error { return e2e.Pose(socket) })
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("connected: %v", err)
		}
	})

	if err := node.Agent().Stop(m.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("an agent without privileges", func(t *testing.T) {
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
		mark := node.Proxy().Mark()
		var fake net.Listener
		err := e2e.AsUser(world.ProxyUID, func() (err error) { // who listens is whose credentials the proxy sees
			fake, err = net.Listen("unixpacket", socket)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = fake.Close() }()
		logs(t, m, node.Proxy(), mark, fmt.Sprintf("runs as user %d", world.ProxyUID))
	})
	t.Run("a directory that others may enter", func(t *testing.T) {
		if err := os.Chmod(node.RunDir(), 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := os.Chmod(node.RunDir(), 0o700); err != nil {
				t.Fatal(err)
			}
		}()
		mark := node.Proxy().Mark()
		fake, err := net.Listen("unixpacket", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = fake.Close() }()
		logs(t, m, node.Proxy(), mark, "0700")
	})
	startAgent(t, m, "a")
	l.newEpoch()
	l.awaitServed(3)
}
