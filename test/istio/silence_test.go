package istio

import (
	"net"
	"os/exec"
	"regexp"
	"strconv"

	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
)

// silence has the packets of a proxy's connection vanish, so that neither end is
// told that it has gone, and returns what waits until the proxy has found out by
// itself and has learned by a new one what has changed meanwhile. That takes 40 s
// at most, less where what it sent last was not acknowledged.
func (m *mesh) silence() (found func(ok ...func(*model.Snapshot) bool)) {
	m.t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	m.must(err)
	m.t.Cleanup(func() { _ = l.Close() })
	first := make(chan int, 1) // the port of who has connected first
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case first <- c.RemoteAddr().(*net.TCPAddr).Port:
			default:
			}
			go func() {
				defer c.Close()
				m.toIstiod(c.(*net.TCPConn))
			}()
		}
	}()
	p := m.followWith("a", func(c *client.Config) { c.Server = l.Addr().String() })
	p.await("the mesh", (*model.Snapshot).AddressesReady, (*model.Snapshot).PoliciesReady, has(serverPod))
	port := strconv.Itoa(<-first)
	for _, end := range []string{"--sport", "--dport"} {
		said, err := exec.Command("iptables", "-I", "INPUT", "-i", "lo", "-p", "tcp", end, port, "-j", "DROP").CombinedOutput()
		if err != nil {
			m.t.Fatalf("iptables: %v: %s", err, said)
		}
	}
	return func(ok ...func(*model.Snapshot) bool) {
		m.t.Helper()
		p.await("what has changed while packets vanished", ok...)
		said, err := exec.Command("iptables", "-nvxL", "INPUT").CombinedOutput()
		m.must(err)
		for _, end := range []string{"spt:", "dpt:"} { // packets, bytes and the target begin a rule's line
			if !regexp.MustCompile(`(?m)^ *[1-9][0-9]* +[0-9]+ DROP .*` + end + port + ` *$`).Match(said) {
				m.t.Errorf("no packet of %s%s has vanished:\n%s", end, port, said)
			}
		}
		if ended := p.client.Status().Ended; ended.Lost == 0 {
			m.t.Errorf("of the connections that have ended none was lost: %+v", ended)
		}
	}
}
