package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// awaitParked waits until so many ends of streams are parked.
func (w *world) awaitParked(n int) {
	w.t.Helper()
	eventually(w.t, func() bool { return w.parking.Parked() == n })
}

// relays counts the goroutines that relay.
func relays() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), ".(*pump).run(")
}

func TestIdleStreamsHaveNoGoroutine(t *testing.T) {
	const streams = 50
	w := newWorld(t, forward(application(t, echo)))
	apps := connected(t, w, streams)
	defer closeAll(apps)
	w.awaitParked(2 * streams)
	eventually(t, func() bool { return relays() == 0 })
	for _, app := range apps { // and go on where they were, in any order
		roundTrip(t, app, 100_000)
	}
	w.awaitParked(2 * streams)
}

// What is allocated for an idle stream at both of its ends, with the test's own
// two connections: else a gigabyte is soon gone for what does nothing.
func TestIdleStreamsTakeLittle(t *testing.T) {
	const streams, most = 1000, 3600
	w := newWorld(t, forward(application(t, echoBytes)))
	closeAll(connected(t, w, 1)) // which makes what all share
	before := allocated()
	apps := connected(t, w, streams)
	defer closeAll(apps)
	w.awaitParked(2 * streams)
	eventually(t, func() bool { return relays() == 0 })
	if each := (allocated() - before) / streams; each > most {
		t.Errorf("%d bytes, want at most %d", each, most)
	}
}

// Of what an idle connection holds a stream is a large part: these fill classes of
// Go's allocator. The next ones are 320 and 352.
func TestStreamsAreSmall(t *testing.T) {
	if client, server := unsafe.Sizeof(Stream{}), unsafe.Sizeof(ServerStream{}); client > 288 || server > 320 {
		t.Errorf("%d bytes at the client's side, %d at the server's", client, server)
	}
}

// allocated is how many bytes are in use on the heap.
func allocated() uint64 {
	runtime.GC()
	runtime.GC() // which also empties pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Bytes of the peer reach an application whose own end stays parked.
func TestParkedStreamsAreDelivered(t *testing.T) {
	w, client, server, _, _ := ends(t)
	for range 3 {
		w.awaitParked(2)
		pass(t, client, server, "there")
		w.awaitParked(2)
		pass(t, server, client, "and back")
	}
}

func TestParkedStreamsEnd(t *testing.T) {
	cases := []struct {
		name      string
		end       func(w *world, client, server *net.TCPConn)
		near, far relay.End
		orderly   bool
	}{
		{"both sides", func(_ *world, client, server *net.TCPConn) { client.CloseWrite(); server.CloseWrite() }, relay.Finished, relay.Finished, true},
		{"client resets", func(_ *world, client, _ *net.TCPConn) { client.SetLinger(0); client.Close() }, relay.ResetByApp, relay.ResetByPeer, false},
		{"server resets", func(_ *world, _, server *net.TCPConn) { server.SetLinger(0); server.Close() }, relay.ResetByPeer, relay.ResetByApp, false},
		{"tunnel lost", func(w *world, _, _ *net.TCPConn) { w.tunnel(0).SetLinger(0); w.tunnel(0).Close() }, relay.Lost, relay.Lost, false},
		{"evicted", func(w *world, _, _ *net.TCPConn) { w.pool.Evict(func(Key) bool { return true }, true) }, relay.Lost, relay.Lost, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w, client, server, done, farDone := ends(t)
			w.awaitParked(2)
			c.end(w, client, server)
			if r := within(t, done); r.End != c.near || (r.Err == nil) != c.orderly || r.Sent != 5 || r.Received != 5 {
				t.Errorf("at the client's side: %+v", r)
			}
			if r := within(t, farDone); r.End != c.far || (r.Err == nil) != c.orderly {
				t.Errorf("at the server's side: %+v", r)
			}
			w.awaitParked(0)
			for _, app := range []*net.TCPConn{client, server} {
				if _, err := io.Copy(io.Discard, app); c.orderly && err != nil || !c.orderly && err == nil {
					t.Errorf("an application saw %v", err)
				}
			}
		})
	}
}

// One side ends while both are parked; the other goes on, and is parked again.
func TestParkedHalfClosed(t *testing.T) {
	for _, swap := range []bool{false, true} {
		w, a, b, done, farDone := ends(t)
		if swap {
			a, b = b, a
		}
		w.awaitParked(2)
		a.CloseWrite()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("FIN arrived as %v", err)
		}
		w.awaitParked(1) // whoever has sent FIN waits for a reset
		pass(t, b, a, "still here")
		w.awaitParked(1)
		b.CloseWrite()
		for _, r := range []relay.Result{within(t, done), within(t, farDone)} {
			if r.End != relay.Finished || r.Err != nil {
				t.Errorf("result %+v", r)
			}
		}
	}
}

// A parked stream is aborted from either side; the handler's context has ended
// with its part.
func TestParkedAborts(t *testing.T) {
	for _, here := range []bool{true, false} {
		cause := errors.New("revoked")
		server, far := tcpPair(t)
		client, near := tcpPair(t)
		results := make(chan relay.Result, 1)
		farResults := make(chan relay.Result, 1)
		served := make(chan *ServerStream, 1)
		w := newWorld(t, func(ctx context.Context, s *ServerStream) {
			s.Accept()
			served <- s
			s.Relay(far, send(farResults))
			within(t, ctx.Done())
		})
		s := w.open("10.0.0.1:80")
		go func() { _ = s.Relay(near, nil, send(results)) }()
		pass(t, client, server, "x")
		w.awaitParked(2)
		at, other := results, farResults
		if here {
			s.Abort(cause)
		} else {
			within(t, served).Abort(cause)
			at, other = other, at
		}
		if r := within(t, at); r.End != relay.Aborted || !errors.Is(r.Err, cause) {
			t.Errorf("aborted: %+v", r)
		}
		if r := within(t, other); r.End != relay.ResetByPeer {
			t.Errorf("far side of an abort: %+v", r)
		}
		expectReset(t, client, false)
		expectReset(t, server, false)
	}
}

// What an application sends before the answer is kept for another endpoint, by
// a goroutine that waits.
func TestUnansweredIsNotParked(t *testing.T) {
	answer := make(chan struct{})
	w := newWorld(t, func(_ context.Context, s *ServerStream) {
		<-answer
		s.Refuse(503)
	})
	app, near := tcpPair(t)
	defer near.Close()
	app.Write([]byte("early"))
	s := w.open("10.0.0.1:80")
	refused := make(chan error, 1)
	go func() { refused <- s.Relay(near, nil, ignore) }()
	eventually(t, func() bool { return s.Counts().Sent.Load() == 5 })
	probe := newWorld(t, forward(application(t, echo))) // by when that is parked there was time for it
	apps := connected(t, probe, 1)
	defer closeAll(apps)
	probe.awaitParked(2)
	if n := w.parking.Parked(); n != 0 {
		t.Errorf("%d parked before the answer", n)
	}
	close(answer)
	var e *RefusedError
	if err := within(t, refused); !errors.As(err, &e) || string(e.Replay.Data) != "early" {
		t.Errorf("refused: %v", err)
	}
}

// A reset is noticed while bytes wait for a parked application that does not
// read them.
func TestParkedReset(t *testing.T) {
	w, client, server, done, farDone := ends(t)
	w.awaitParked(2)
	fill(server)
	client.SetLinger(0)
	client.Close()
	if r := within(t, done); r.End != relay.ResetByApp {
		t.Errorf("where the reset happened: %+v", r)
	}
	if r := within(t, farDone); r.End != relay.ResetByPeer {
		t.Errorf("at the far side: %+v", r)
	}
	expectReset(t, server, false)
}

// A parked application that does not take all that comes gets the rest once it
// reads, and is not parked before.
func TestParkedReadsLater(t *testing.T) {
	const size = 64 << 20 // more than the kernel keeps for it
	w, client, server, _, _ := ends(t)
	w.awaitParked(2)
	go func() {
		server.Write(make([]byte, size))
		server.CloseWrite()
	}()
	w.awaitParked(0)
	client.SetReadDeadline(time.Now().Add(patience))
	if n, err := io.Copy(io.Discard, client); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}
