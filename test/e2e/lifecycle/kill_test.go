package lifecycle

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// listeners are the inodes of a pod's captured ports.
func listeners(t *testing.T, pod *world.Pod) map[string]string {
	t.Helper()
	ports := map[string]string{":3A99": "15001", ":3A9E": "15006", ":3AA0": "15008"}
	const listening = "0A"
	found := map[string]string{}
	err := pod.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/tcp6")
		for line := range strings.Lines(string(table)) {
			// sl local remote st queues timer retransmits uid timeout inode
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != listening {
				continue
			}
			if port, ok := ports[f[1][max(0, len(f[1])-5):]]; ok {
				found[port] = f[9]
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// keepListeners notes the sockets of all enrolled pods; the returned function
// fails the test if one of them is another by then.
func keepListeners(t *testing.T, m *e2e.Mesh) (check func()) {
	t.Helper()
	before := map[string]map[string]string{}
	for _, p := range m.Pods() {
		if strings.HasPrefix(p.Key, "mesh/") {
			before[p.Key] = listeners(t, p)
			if len(before[p.Key]) != 3 {
				t.Fatalf("%s listens on %v", p.Key, before[p.Key])
			}
		}
	}
	return func() {
		t.Helper()
		for pod, want := range before {
			if got := listeners(t, m.Pod(pod)); !maps.Equal(got, want) {
				t.Errorf("listeners of %s were %v and are %v", pod, want, got)
			}
		}
	}
}

// startAgent waits until the proxy has given the agent what it holds.
func startAgent(t *testing.T, m *e2e.Mesh, node string) {
	t.Helper()
	if err := m.Node(node).StartAgent(m.Context()); err != nil {
		t.Fatal(err)
	}
	logs(t, m, m.Node(node).Agent(), 0, "proxy is ready")
}

// SIGKILL under load, on each node: nothing is refused; what comes while a
// proxy is dead waits for the next one; the death of an agent cuts nothing.
func TestKill(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	l := startLoad(t, m)
	for i, name := range []string{"a", "b"} {
		node := m.Node(name)
		keep := keepListeners(t, m)
		killAgent := func() {
			t.Helper()
			if err := node.Agent().Kill(); err != nil {
				t.Fatal(err)
			}
			l.newEpoch()
			startAgent(t, m, name)
			l.awaitServed(5)
			keep()
		}
		killProxy := func() {
			t.Helper()
			l.kill(node.Proxy().Kill)
			l.queue(touching(name)...)
			if err := node.StartProxy(m.Context()); err != nil {
				t.Fatal(err)
			}
			l.awaitServed(5)
			keep()
		}
		killProxy()
		endFlows := startFlows(t, m, 9000+10*i)
		killAgent()
		endFlows()
		killProxy()
		killAgent()
	}
	if l.cut == 0 {
		t.Log("no connection was in flight at any kill")
	}
}

// touching are the paths that need a node's proxy.
func touching(node string) (paths []path) {
	part := map[string]string{"a": "198.18.1.", "b": "198.18.2."}[node]
	home := map[string]string{"mesh/client": "a", "mesh/server": "b"}
	for _, p := range everywhere {
		if home[p.from] == node || strings.HasPrefix(p.to, part) {
			paths = append(paths, p)
		}
	}
	if len(paths) == 0 {
		panic(fmt.Sprintf("no path touches node %s", node))
	}
	return paths
}
