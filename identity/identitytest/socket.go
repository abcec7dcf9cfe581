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
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
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
	return path
}
