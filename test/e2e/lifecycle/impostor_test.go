package lifecycle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// asUser runs fn on a thread that belongs to another user and ends with it.
func asUser(uid int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		// The library's call would change every thread.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- fmt.Errorf("setresuid: %w", errno)
			return
		}
		done <- fn()
	}()
	return <-done
}

// pose connects to the agent as the proxy would, and expects to be dropped
// without a word.
func pose(socket string) error {
	c, err := net.Dial("unixpacket", socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetReadDeadline(time.Now().Add(e2e.Patience)); err != nil {
		return err
	}
	n, err := c.Read(make([]byte, 1))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the agent goes on: %d bytes, %w", n, err)
	}
	return nil
}

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
		if err := pose(socket); err != nil {
			t.Error(err)
		}
		logs(t, m, node.Agent(), mark, "refused a process that connects as the proxy", "user 0")
	})
	t.Run("the proxy's user outside of its control group", func(t *testing.T) {
		mark := node.Agent().Mark()
		if err := asUser(world.ProxyUID, func() error { return pose(socket) }); err != nil {
			t.Error(err)
		}
		logs(t, m, node.Agent(), mark, "refused a process that connects as the proxy", "control group")
	})
	t.Run("a user without access", func(t *testing.T) {
		err := asUser(world.ProxyUID+1, func() error { return pose(socket) })
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
		err := asUser(world.ProxyUID, func() (err error) { // who listens is whose credentials the proxy sees
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
