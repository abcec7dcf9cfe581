package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup relays between two applications and returns their ends.
func setup(ctx context.Context, t testing.TB) (client, server *net.TCPConn, done chan Result) {
	t.Helper()
	client, near := tcpPair(t)
	far, server := tcpPair(t)
	done = make(chan Result, 1)
	go func() { done <- Copy(ctx, near, far, nil) }()
	for _, c := range []*net.TCPConn{client, server} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return client, server, done
}

func TestCopyByteExact(t *testing.T) {
	for _, size := range []int{1, 1000, 70_000, 20 << 20} {
		client, server, done := setup(t.Context(), t)
		var both sync.WaitGroup
		both.Go(func() { send(t, client, server, size) })
		both.Go(func() { send(t, server, client, size/2) })
		both.Wait()
		r := within(t, done)
		if r.End != Finished || r.Err != nil || r.Sent != int64(size) || r.Received != int64(size/2) {
			t.Errorf("%d bytes: result %+v", size, r)
		}
	}
}

// send writes random bytes and FIN, and checks what arrives.
func send(t *testing.T, from, to *net.TCPConn, size int) {
	sent := make([]byte, size)
	rand.Read(sent)
	go func() {
		from.Write(sent)
		from.CloseWrite()
	}()
	got, err := io.ReadAll(to)
	if err != nil || !bytes.Equal(sent, got) {
		t.Errorf("sent %d bytes, got %d or others: %v", len(sent), len(got), err)
	}
}

func TestCopyHalfClose(t *testing.T) {
	for _, swap := range []bool{false, true} {
		a, b, done := setup(t.Context(), t)
		if swap {
			a, b = b, a
		}
		a.CloseWrite()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("FIN arrived as %v", err)
		}
		// The other direction still carries.
		b.Write([]byte("late"))
		got := make([]byte, 4)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != "late" {
			t.Fatalf("after FIN: %q, %v", got, err)
		}
		select {
		case r := <-done:
			t.Fatalf("ended with one FIN: %+v", r)
		default:
		}
		b.CloseWrite()
		if r := within(t, done); r.End != Finished {
			t.Errorf("result %+v", r)
		}
	}
}

func TestCopyReset(t *testing.T) {
	stall := func(_, peer *net.TCPConn) { // until all buffers on the way are full
		peer.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for err := error(nil); err == nil; {
			_, err = peer.Write(make([]byte, 1<<20))
		}
	}
	cases := []struct {
		name   string
		fin    bool // the peer has seen FIN before
		before func(resets, peer *net.TCPConn)
	}{
		{"at once", false, func(_, _ *net.TCPConn) {}},
		{"after its own FIN", true, func(r, peer *net.TCPConn) {
			r.CloseWrite()
			peer.Read(make([]byte, 1))
		}},
		{"after the other's FIN", false, func(r, peer *net.TCPConn) {
			peer.CloseWrite()
			r.Read(make([]byte, 1))
		}},
		{"while it does not read", false, func(r, peer *net.TCPConn) { stall(r, peer) }},
		{"while the other does not read", false, func(r, peer *net.TCPConn) { stall(peer, r) }},
	}
	for _, c := range cases {
		for _, swap := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				a, b, done := setup(t.Context(), t)
				want := ResetByApp
				if swap {
					a, b, want = b, a, ResetByPeer
				}
				c.before(a, b)
				a.SetLinger(0)
				a.Close()
				if r := within(t, done); r.End != want || !errors.Is(r.Err, syscall.ECONNRESET) && !errors.Is(r.Err, syscall.EPIPE) {
					t.Errorf("result %+v, want %s", r, want)
				}
				expectReset(t, b, c.fin)
			})
		}
	}
}

func TestCopyAbort(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	client, server, done := setup(ctx, t)
	revoked := errors.New("revoked")
	cancel(revoked)
	if r := within(t, done); r.End != Aborted || !errors.Is(r.Err, revoked) {
		t.Errorf("result %+v", r)
	}
	expectReset(t, client, false)
	expectReset(t, server, false)
}

func TestCopyLeavesNoDescriptors(t *testing.T) {
	run := func() {
		client, server, done := setup(t.Context(), t)
		go io.Copy(io.Discard, server)
		client.Write(make([]byte, 4<<20)) // through a pipe
		client.Close()
		server.CloseWrite()
		within(t, done)
		server.Close()
	}
	run() // the pipe stays in its pool
	before := descriptors(t)
	for range 20 {
		run()
	}
	if after := descriptors(t); after > before+4 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// An idle connection must not hold buffers, nor a message allocate.
func TestCopyAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool forget")
	}
	client, server, done := setup(t.Context(), t)
	p := make([]byte, 1000)
	message := func() {
		if _, err := client.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, p); err != nil {
			t.Fatal(err)
		}
	}
	message()
	if n := testing.AllocsPerRun(500, message); n >= 1 {
		t.Errorf("%.2f allocations per message", n)
	}
	client.CloseWrite()
	server.CloseWrite()
	within(t, done)
}

func BenchmarkCopyRoundTrip(b *testing.B) {
	client, server, _ := setup(b.Context(), b)
	client.SetDeadline(time.Time{})
	server.SetDeadline(time.Time{})
	go io.Copy(struct{ io.Writer }{server}, struct{ io.Reader }{server})
	p := make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		client.Write(p)
		if _, err := io.ReadFull(client, p); err != nil {
			b.Fatal(err)
		}
	}
	client.Close()
	server.Close()
}

func BenchmarkCopyBulk(b *testing.B) {
	client, server, _ := setup(b.Context(), b)
	client.SetDeadline(time.Time{})
	server.SetDeadline(time.Time{})
	go io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{server})
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	client.Close()
	server.Close()
}

// expectReset drains c and wants RST at the end, without FIN before it unless
// there was one already: then a read does not show it.
func expectReset(t *testing.T, c *net.TCPConn, fin bool) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if fin {
		s, e := NewSocket(c)
		if e != nil {
			t.Fatal(e)
		}
		err = s.WaitReset()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("want a reset, got %v", err)
	}
}

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dialed.Close()
		accepted.Close()
	})
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func within[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happened in 10 s")
		panic("unreachable")
	}
}
