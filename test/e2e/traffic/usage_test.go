package traffic

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// held is what the proxies hold on behalf of connections, by node. The pooled
// connections between them are not counted: they stay for the next stream.
type held map[string]holding

type holding struct{ sockets, pipes, goroutines, connections int }

func usage(t *testing.T, m *e2e.Mesh) held {
	t.Helper()
	all := held{}
	for _, n := range m.Nodes() {
		h := holding{goroutines: goroutines(t, m, n.Name), connections: len(m.Connections(n.Name, "live", "", ""))}
		pooled := pooledSockets(t, m)
		dir := fmt.Sprintf("/proc/%d/fd", n.Proxy().PID())
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			link, _ := os.Readlink(filepath.Join(dir, e.Name())) // it may have been closed by now
			switch {
			case strings.HasPrefix(link, "socket:") && !pooled[link]:
				h.sockets++
			case strings.HasPrefix(link, "pipe:"):
				h.pipes++
			}
		}
		all[n.Name] = h
	}
	return all
}

// pooledSockets are both ends of connections to port 15008, as their
// descriptors name them.
func pooledSockets(t *testing.T, m *e2e.Mesh) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, pod := range m.Pods() {
		err := pod.Do(func() error {
			for _, table := range []string{"tcp", "tcp6"} {
				text, err := os.ReadFile("/proc/thread-self/net/" + table)
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(text)) {
					f := strings.Fields(line) // number, local, remote, state, ..., inode
					if len(f) > 9 && f[3] == "01" && (strings.HasSuffix(f[1], ":3AA0") || strings.HasSuffix(f[2], ":3AA0")) {
						found["socket:["+f[9]+"]"] = true
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// ofPool are functions that run as long as a pooled connection does.
var ofPool = regexp.MustCompile(`proxy/hbone\.\(\*(conn|Pool)\)|proxy\.\(\*Proxy\)\.inbound\b`)

func goroutines(t *testing.T, m *e2e.Mesh, node string) int {
	t.Helper()
	text, err := m.AdminText(node, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for group := range strings.SplitSeq(string(text), "\n\n") {
		scanner := bufio.NewScanner(bytes.NewReader([]byte(group)))
		for scanner.Scan() {
			// "N @ addresses of the stack", then a line for each function.
			count, _, ok := strings.Cut(scanner.Text(), " @ ")
			if n, err := strconv.Atoi(count); ok && err == nil && !ofPool.MatchString(group) {
				total += n
			}
		}
	}
	return total
}

// returns waits until the proxies hold no more than they did, but for what
// the next connections are sure to use.
func (before held) returns(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	const slack = 8 // dialing sockets kept ready, pipes for reuse, a scrape going on
	m.Eventually("the proxies hold what they held before", func() error {
		for node, now := range usage(t, m) {
			was := before[node]
			if now.connections > was.connections || now.goroutines > was.goroutines+slack ||
				now.sockets > was.sockets+slack || now.pipes > was.pipes+slack {
				return fmt.Errorf("node %s holds %+v, held %+v before", node, now, was)
			}
		}
		return nil
	})
}
