package traffic

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// Readers that have stopped hold up nobody else on the same pooled connection,
// in either direction, and lose nothing.
func TestStalledReaders(t *testing.T) {
	const (
		stalled = 20
		fast    = 50
		buffer  = 64 << 10 // of sockets: else the kernel's own take it all
		bulk    = 8 << 20
	)
	m := e2e.Start(t)
	connect := meet(t, m, serverPod, ":8081")
	serveStreams(t, m, serverPod, ":8080")

	var sent atomic.Int64
	var writers, readers errgroup.Group
	defer func() { _ = writers.Wait() }() // each has a deadline
	type reader struct {
		conn *net.TCPConn
		want random
	}
	var stopped []reader
	for i := range stalled {
		from, to := connect(t, "mesh/client", "198.18.2.10:8081")
		if i%2 == 1 {
			from, to = to, from
		}
		for _, c := range []*net.TCPConn{from, to} {
			_ = c.SetReadBuffer(buffer)
			_ = c.SetWriteBuffer(buffer)
			_ = c.SetDeadline(time.Now().Add(bulkPatience))
		}
		stream := random{seed: uint64(1000 + i), size: bulk}
		stopped = append(stopped, reader{to, stream})
		writers.Go(func() error {
			if err := stream.send(counting{from, &sent}); err != nil {
				return err
			}
			return from.CloseWrite()
		})
	}
	last := int64(0)
	m.Eventually("the writers to stalled readers have stopped", func() error {
		now := sent.Load()
		if now == last && now > stalled*buffer && now < stalled*bulk {
			return nil
		}
		last = now
		return fmt.Errorf("%d bytes sent", now)
	})

	carry(t, m, fast, 512<<10, []string{"mesh/client"}, []string{serverTo})
	if now := sent.Load(); now == stalled*bulk {
		t.Error("nobody was stalled")
	}
	if n := m.Metric("a", "tacit_pool_connections"); n != 1 {
		t.Errorf("%v pooled connections, want all on 1", n)
	}

	for _, r := range stopped {
		readers.Go(func() error { return r.want.check(r.conn) })
	}
	if err := readers.Wait(); err != nil {
		t.Errorf("stalled, then read: %v", err)
	}
	if err := writers.Wait(); err != nil {
		t.Errorf("to a reader that was stalled: %v", err)
	}
}

// counting counts what is written.
type counting struct {
	net.Conn
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}
