package traffic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// meet gives a test both ends of connections to a pod, one at a time.
func meet(t *testing.T, m *e2e.Mesh, pod, address string) func(t *testing.T, from, to string) (client, server *net.TCPConn) {
	t.Helper()
	accepted, over := make(chan *net.TCPConn), t.Context().Done()
	m.Serve(pod, address, func(c *net.TCPConn) {
		select {
		case accepted <- c:
			<-over
		case <-over:
		}
	})
	return func(t *testing.T, from, to string) (client, server *net.TCPConn) {
		t.Helper()
		client, err := m.Dial(from, to)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case server = <-accepted:
		case <-time.After(e2e.Patience):
			t.Fatalf("no connection from %s arrives at %s", from, to)
		}
		for _, c := range []*net.TCPConn{client, server} {
			if err := c.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
				t.Fatal(err)
			}
		}
		return client, server
	}
}

// path is one of the ways that a connection may take.
type path struct {
	name     string
	meet     func(t *testing.T, from, to string) (client, server *net.TCPConn)
	from, to string
}

func (p path) connect(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	return p.meet(t, p.from, p.to)
}

func paths(t *testing.T, m *e2e.Mesh) []path {
	t.Helper()
	toServer, toNear, toTarget := meet(t, m, serverPod, ":8080"), meet(t, m, nearPod, ":8080"), meet(t, m, "outside/target", ":8080")
	return []path{
		{"across nodes", toServer, "mesh/client", serverTo},
		{"across nodes, IPv6", toServer, "mesh/client", serverTo6},
		{"same node", toNear, "mesh/client", nearTo},
		{"into the mesh", toServer, "outside/plain", serverTo},
		{"out of the mesh", toTarget, "mesh/client", "198.18.2.30:8080"},
	}
}

func say(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("%q arrived as %q: %v", text, got, err)
	}
}

func finish(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func hearEnd(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("FIN arrived as %d bytes, %v", n, err)
	}
}

func reset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func hearReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("RST arrived as %d bytes, %v", n, err)
	}
}

// hearLateReset is hearReset behind FIN: a read does not show it any more.
func hearLateReset(t *testing.T, m *e2e.Mesh, c *net.TCPConn) {
	t.Helper()
	m.Eventually("RST behind FIN", func() error {
		_, err := c.Write([]byte("?"))
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		return fmt.Errorf("a write ends with %w", err)
	})
}

// A close arrives as what it was, at either end and on every path.
func TestCloses(t *testing.T) {
	m := e2e.Start(t)
	for _, path := range paths(t, m) {
		for _, serverFirst := range []bool{false, true} {
			who := "client first"
			if serverFirst {
				who = "server first"
			}
			run := func(what string, test func(t *testing.T, first, second *net.TCPConn)) {
				t.Run(path.name+"/"+what+", "+who, func(t *testing.T) {
					first, second := path.connect(t)
					if serverFirst {
						first, second = second, first
					}
					test(t, first, second)
				})
			}
			run("FIN", func(t *testing.T, first, second *net.TCPConn) {
				say(t, first, "the last of one")
				finish(t, first)
				hear(t, second, "the last of one")
				hearEnd(t, second)
				say(t, second, "and more of")
				hear(t, first, "and more of")
				say(t, second, " the other")
				finish(t, second)
				hear(t, first, " the other")
				hearEnd(t, first)
			})
			run("RST", func(t *testing.T, first, second *net.TCPConn) {
				reset(t, first)
				hearReset(t, second)
			})
			run("RST of a used connection", func(t *testing.T, first, second *net.TCPConn) {
				say(t, second, "hello")
				hear(t, first, "hello")
				say(t, first, "hello yourself")
				hear(t, second, "hello yourself")
				reset(t, first)
				hearReset(t, second)
			})
			run("RST behind the other's FIN", func(t *testing.T, first, second *net.TCPConn) {
				finish(t, second)
				hearEnd(t, first)
				reset(t, first)
				hearReset(t, second)
			})
			run("RST behind its own FIN", func(t *testing.T, first, second *net.TCPConn) {
				finish(t, first)
				hearEnd(t, second)
				reset(t, first)
				hearLateReset(t, m, second)
			})
		}
	}
}
