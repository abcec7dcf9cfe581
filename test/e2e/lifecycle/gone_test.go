package lifecycle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// witness puts one end of a veth pair into a pod and the other onto its node:
// that goes when the pod's network namespace does, and not before.
func witness(t *testing.T, m *e2e.Mesh, pod *world.Pod, name string) (gone func() error) {
	t.Helper()
	out, err := pod.Node.Command(t.Context(), "ip", "link", "add", name, "type", "veth", "peer", "name", "witness", "netns", pod.NetnsPath()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	node := pod.Node
	return func() error {
		return node.Do(func() error {
			if _, err := net.InterfaceByName(name); err == nil {
				return errors.New("the network namespace is still there")
			}
			return nil
		})
	}
}

// holds reports whether a process has a descriptor of a network namespace.
func holds(pid int, namespace unix.Stat_t) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, e.Name()), &st) == nil && st.Dev == namespace.Dev && st.Ino == namespace.Ino {
			return true, nil
		}
	}
	return false, nil
}

// A pod that ends under live connections takes everything with it: nobody
// keeps its network namespace, and its peers' connections end. One of the same
// name, or with the same address, has nothing of it.
func TestPodGone(t *testing.T) {
	t.Parallel() // it waits for keepalive
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	m.Serve("mesh/client", ":8080", e2e.Echo)
	far := manifest{namespace: "mesh", name: "far", uid: "0f0f0f0f-0000-4000-8000-000000000001", node: "b", account: "far", annotations: []string{captured}, ips: []string{"198.18.2.50", "fd00:7ac1:2::50"}}
	mark := m.Node("b").Agent().Mark()
	m.MustApply(far.String())
	logs(t, m, m.Node("b").Agent(), mark, "pod captured", "mesh/far")
	in := awaitSecurity(t, m, "a", "mesh/client", "mesh/far", 9000, "mtls")
	out := openStream(t, m, "mesh/far", "mesh/client", 9001)
	near := openStream(t, m, "mesh/far", "mesh/server", 9002) // on its node
	plain := openStream(t, m, "outside/plain", "mesh/far", 9003)
	for _, s := range []*stream{in, out, near, plain} {
		if err := s.speak(serverEnd, 1000); err != nil {
			t.Fatal(err)
		}
	}
	var namespace unix.Stat_t
	if err := unix.Stat(m.Pod("mesh/far").NetnsPath(), &namespace); err != nil {
		t.Fatal(err)
	}
	gone := witness(t, m, m.Pod("mesh/far"), "witness0")
	agent, proxy := m.Node("b").Agent().PID(), m.Node("b").Proxy().PID()
	if held, err := holds(agent, namespace); !held || err != nil {
		t.Fatalf("the agent holds the namespace: %v, %v: the test is void", held, err)
	}

	if err := m.Delete("Pod", "mesh/far"); err != nil {
		t.Fatal(err)
	}
	// The end of its processes.
	for s, end := range map[*stream]int{in: serverEnd, out: clientEnd, near: clientEnd, plain: serverEnd} {
		_ = s.ends[end].SetLinger(0)
		_ = s.ends[end].Close()
	}
	ended := time.Now()
	// A few seconds; a socket left to retransmit FIN would keep it for minutes.
	m.Eventually("nobody has a descriptor of it", func() error {
		for _, pid := range []int{agent, proxy} {
			if held, err := holds(pid, namespace); held || err != nil {
				return fmt.Errorf("process %d: %v, %w", pid, held, err)
			}
		}
		return gone()
	})
	if took := time.Since(ended); took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	if err := near.ended(serverEnd); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a peer on its node got %v", err)
	}

	t.Run("the same name", func(t *testing.T) {
		next := far
		next.uid, next.ips, next.account = "0f0f0f0f-0000-4000-8000-000000000002", []string{"198.18.2.51", "fd00:7ac1:2::51"}, "next"
		m.MustApply(next.String())
		s := awaitSecurity(t, m, "a", "mesh/client", "mesh/far", 9000, "mtls")
		expectIdentity(t, m, s, "next")
		s.abort()
	})
	t.Run("the same address", func(t *testing.T) {
		heir := manifest{namespace: "mesh", name: "heir", node: "b", account: "heir", annotations: []string{captured}, ips: far.ips}
		m.MustApply(heir.String())
		s := awaitSecurity(t, m, "a", "mesh/client", "mesh/heir", 9000, "mtls")
		expectIdentity(t, m, s, "heir")
		openStream(t, m, "mesh/heir", "mesh/client", 9005)
		expectSource(t, m, 9005, "heir")
	})

	for s, end := range map[*stream]int{in: clientEnd, out: serverEnd, plain: clientEnd} {
		if err := s.ended(end); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the peer's end: %v", s.name, err)
		}
	}
}

// expectIdentity checks whom the client's node has verified at the far end.
func expectIdentity(t *testing.T, m *e2e.Mesh, s *stream, account string) {
	t.Helper()
	for _, c := range m.Connections("a", "live", "mesh/client", "") {
		if c.Source.Address.String() == s.address() {
			if !strings.HasSuffix(c.Destination.Identity, "/sa/"+account) {
				t.Errorf("the far end is %q, want account %s", c.Destination.Identity, account)
			}
			return
		}
	}
	t.Errorf("no connection from %s", s.address())
}

// expectSource checks as whom the client's node has verified the caller of one
// of its ports.
func expectSource(t *testing.T, m *e2e.Mesh, port uint16, account string) {
	t.Helper()
	for _, c := range m.Connections("a", "live", "", "mesh/client") {
		if c.Direction == "inbound" && c.Destination.Address.Port() == port {
			if !strings.HasSuffix(c.Source.Identity, "/sa/"+account) {
				t.Errorf("the caller is %q, want account %s", c.Source.Identity, account)
			}
			return
		}
	}
	t.Errorf("no connection to port %d", port)
}
