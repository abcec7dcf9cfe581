package traffic

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// held is what the proxies hold on behalf of connections, by node. Connections
// of the pool and dialing sockets kept ready are not counted: they stay for
// the next connection.
type held map[string]holding

type holding struct{ sockets, pipes, goroutines, connections int }

func usage(t *testing.T, m *e2e.Mesh) held {
	t.Helper()
	all := held{}
	for _, n := range m.Nodes() {
		h := holding{goroutines: goroutines(t, m, n.Name), connections: len(m.Connections(n.Name, "live", "", ""))}
		eachSocket(t, n.Proxy(), func(fd int) {
			local, _ := unix.Getsockname(fd)
			remote, _ := unix.Getpeername(fd)
			if p := portOf(local); p > 0 && p != protocol.HBONEPort && portOf(remote) != protocol.HBONEPort {
				h.sockets++
			}
		})
		for _, link := range descriptors(t, n.Proxy()) {
			if strings.HasPrefix(link, "pipe:") {
				h.pipes++
			}
		}
		all[n.Name] = h
	}
	return all
}

// portOf is 0 for what is neither IPv4 nor IPv6, and without a port.
func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// descriptors are what a program's descriptors stand for, by number.
func descriptors(t *testing.T, p *world.Program) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.PID())
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		found[number], _ = os.Readlink(filepath.Join(dir, e.Name())) // it may be closed by now
	}
	return found
}

// eachSocket shows a program's sockets, one descriptor at a time.
func eachSocket(t *testing.T, p *world.Program, see func(fd int)) {
	t.Helper()
	process, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(process) }()
	for number, link := range descriptors(t, p) {
		if !strings.HasPrefix(link, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue // it is closed by now
		}
		see(fd)
		_ = unix.Close(fd)
	}
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
		for line := range strings.Lines(group) {
			// "N @ addresses of the stack", then a line for each function.
			count, _, ok := strings.Cut(line, " @ ")
			if n, err := strconv.Atoi(count); ok && err == nil && !ofPool.MatchString(group) {
				total += n
			}
		}
	}
	return total
}

// returns waits until the proxies hold no more than they did.
func (before held) returns(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	const slack = 8 // pipes kept for reuse, a scrape or a renewal going on
	m.Eventually("the proxies hold what they held before", func() error {
		for node, now := range usage(t, m) {
			was := before[node]
			if now.connections > was.connections || now.goroutines > was.goroutines+slack ||
				now.sockets > was.sockets || now.pipes > was.pipes+slack {
				return fmt.Errorf("node %s holds %+v, held %+v before", node, now, was)
			}
		}
		return nil
	})
}
