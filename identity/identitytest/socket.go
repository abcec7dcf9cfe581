package identitytest

import (
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// Socket listens on a Unix socket, whose path it returns, and hands each
// connection to serve, one after the other. They are closed with the test.
func Socket(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	return listen(t, "unix", filepath.Join(t.TempDir(), "s"), serve)
}

// Server is Socket on a port of the loopback device, and returns the address.
func Server(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	return listen(t, "tcp", "127.0.0.1:0", serve)
}

func listen(t testing.TB, network, address string, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var (
		serving sync.WaitGroup
		open    []net.Conn
	)
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
			serve(c)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
		for _, c := range open {
			_ = c.Close()
		}
	})
	return l.Addr().String()
}
