package traffic

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// The timeouts of connection tracking that a silent connection meets, as the
// kernel sets them unless told otherwise, in seconds. The shortest counts.
const (
	timeoutDir       = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"
	shortestTimeout  = 60 // close_wait
	wantedHalfClosed = 3600
)

// A silent connection, half closed or not, is not forgotten by connection
// tracking. Hours of silence are not to be waited for, so this shows three
// things: that the timeouts of half-closed ones are raised to hours; that
// every captured socket sends keepalives more often than the kernel's own
// timeouts; and, both at a smaller scale, that such keepalives carry a
// connection across a timeout that ends one without.
func TestSilentConnections(t *testing.T) {
	m := e2e.Start(t)
	connect := meet(t, m, serverPod, ":8080")
	pods := []string{"mesh/client", serverPod}
	for _, pod := range pods {
		for _, state := range []string{"close_wait", "fin_wait"} {
			if s := timeout(t, m.Pod(pod), state); s < wantedHalfClosed {
				t.Errorf("%s: connection tracking forgets a connection in %s after %d s", pod, state, s)
			}
		}
	}

	silent := []*silence{
		{what: "half closed by the client"}, {what: "half closed by the server"}, {what: "open"},
		{what: "half closed, without keepalive", mortal: true}, {what: "open, without keepalive", mortal: true},
	}
	for _, s := range silent {
		s.client, s.server = connect(t, "mesh/client", serverTo)
		say(t, s.client, "hello") // once this has arrived the proxies change nothing more
		hear(t, s.server, "hello")
		s.capture(t, m)
	}
	const scaled = 3 // s
	for _, pod := range pods {
		for _, state := range []string{"close_wait", "fin_wait", "established"} {
			setTimeout(t, m.Pod(pod), state, scaled)
		}
	}
	for _, s := range silent {
		say(t, s.client, "again") // from here on the new timeouts hold
		hear(t, s.server, "again")
		switch {
		case s.what == "half closed by the server":
			finish(t, s.server)
			hearEnd(t, s.client)
		case strings.HasPrefix(s.what, "half closed"):
			finish(t, s.client)
			hearEnd(t, s.server)
		}
	}
	for _, s := range silent {
		if s.mortal {
			m.Eventually(s.what+": forgotten", func() error { return s.tracked(m, false) })
		}
	}
	for _, s := range silent {
		if s.mortal {
			continue
		}
		if err := s.tracked(m, true); err != nil {
			t.Errorf("%s: %v", s.what, err)
		}
		from, to := s.server, s.client
		if s.what == "half closed by the server" {
			from, to = s.client, s.server
		}
		say(t, from, "still there")
		hear(t, to, "still there")
		finish(t, from)
		hearEnd(t, to)
	}
}

// silence is a connection on which nobody speaks.
type silence struct {
	what           string
	mortal         bool // forgotten when connection tracking's time is over
	client, server *net.TCPConn
}

// capture finds the proxies' sockets on the connection, wants them to send
// keepalives in time, and then makes them send more often, or not at all.
func (s *silence) capture(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	for node, port := range map[string]int{
		"a": s.client.LocalAddr().(*net.TCPAddr).Port,
		"b": s.server.RemoteAddr().(*net.TCPAddr).Port,
	} {
		found := 0
		eachSocket(t, m.Node(node).Proxy(), func(fd int) {
			local, _ := unix.Getsockname(fd)
			remote, _ := unix.Getpeername(fd)
			if portOf(local) != port && portOf(remote) != port {
				return
			}
			found++
			on, errOn := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			idle, errIdle := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			interval, errInterval := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)
			if errOn != nil || errIdle != nil || errInterval != nil || on == 0 || max(idle, interval) >= shortestTimeout {
				t.Errorf("%s: node %s sends keepalives: %d, after %d s, then every %d s", s.what, node, on, idle, interval)
			}
			keepalive := 1
			if s.mortal {
				keepalive = 0
			}
			for _, o := range [][3]int{
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, keepalive},
			} {
				if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
					t.Error(err)
				}
			}
		})
		if found != 1 {
			t.Fatalf("%s: node %s has %d sockets with port %d, want 1", s.what, node, found, port)
		}
	}
}

// tracked fails unless the connection is known in both pods, or in neither.
func (s *silence) tracked(m *e2e.Mesh, want bool) error {
	for pod, port := range map[string]int{
		"mesh/client": s.client.LocalAddr().(*net.TCPAddr).Port,
		serverPod:     s.server.RemoteAddr().(*net.TCPAddr).Port,
	} {
		known := false
		err := m.Pod(pod).Do(func() error {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			for _, f := range flows {
				known = known || int(f.Forward.SrcPort) == port && f.Forward.DstPort == 8080
			}
			return err
		})
		if err != nil {
			return err
		}
		if known != want {
			return fmt.Errorf("connection tracking of %s knows it: %v", pod, known)
		}
	}
	return nil
}

func timeout(t *testing.T, p *world.Pod, state string) (seconds int) {
	t.Helper()
	err := p.Do(func() error {
		text, err := os.ReadFile(timeoutDir + state)
		if err != nil {
			return err
		}
		seconds, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seconds
}

func setTimeout(t *testing.T, p *world.Pod, state string, seconds int) {
	t.Helper()
	if err := p.Do(func() error { return os.WriteFile(timeoutDir+state, []byte(strconv.Itoa(seconds)), 0) }); err != nil {
		t.Fatal(err)
	}
}
