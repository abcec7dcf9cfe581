package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// ends connects a client application to a server application through a world
// and returns both, each with a deadline.
func ends(t *testing.T) (w *world, client, server *net.TCPConn, done chan relay.Result, farDone chan relay.Result) {
	t.Helper()
	server, far := tcpPair(t)
	farDone = make(chan relay.Result, 1)
	w = newWorld(t, func(_ context.Context, s *ServerStream) {
		s.Accept()
		s.Relay(far, send(farDone))
	})
	client, done = w.connect("10.0.0.1:80")
	server.SetDeadline(time.Now().Add(patience))
	client.SetDeadline(time.Now().Add(patience))
	pass(t, client, server, "hello")
	pass(t, server, client, "world")
	return w, client, server, done, farDone
}

func pass(t *testing.T, from, to *net.TCPConn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q arrived as %q, %v", text, got, err)
	}
}

func TestHalfClose(t *testing.T) {
	for _, swap := range []bool{false, true} {
		_, a, b, done, farDone := ends(t)
		if swap {
			a, b = b, a
		}
		a.CloseWrite()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("FIN arrived as %v", err)
		}
		pass(t, b, a, "still here")
		select {
		case r := <-done:
			t.Fatalf("ended by one FIN: %+v", r)
		default:
		}
		b.CloseWrite()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("FIN arrived as %v", err)
		}
		for _, r := range []relay.Result{within(t, done), within(t, farDone)} {
			if r.End != relay.Finished || r.Err != nil {
				t.Errorf("result %+v", r)
			}
		}
	}
}

func TestReset(t *testing.T) {
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
		{"while it does not read", false, func(r, peer *net.TCPConn) { fill(peer) }},
		{"while the other does not read", false, func(r, peer *net.TCPConn) { fill(r) }},
	}
	for _, c := range cases {
		for _, swap := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				_, a, b, done, farDone := ends(t)
				near, far := done, farDone
				if swap {
					a, b = b, a
					near, far = farDone, done
				}
				c.before(a, b)
				a.SetLinger(0)
				a.Close()
				if r := within(t, near); r.End != relay.ResetByApp {
					t.Errorf("where the reset happened: %+v", r)
				}
				if r := within(t, far); r.End != relay.ResetByPeer {
					t.Errorf("at the far side: %+v", r)
				}
				expectReset(t, b, c.fin)
			})
		}
	}
}

// fill writes until everything on the way is full: nothing was taken for a
// while, however slowly before.
func fill(c *net.TCPConn) {
	for n := 1; n > 0; {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, _ = c.Write(make([]byte, 1<<20))
	}
}

func TestAbort(t *testing.T) {
	cause := errors.New("revoked")
	server, far := tcpPair(t)
	client, near := tcpPair(t)
	farDone := make(chan relay.Result, 1)
	w := newWorld(t, func(_ context.Context, s *ServerStream) {
		s.Accept()
		s.Relay(far, send(farDone))
	})
	s := w.open("10.0.0.1:80")
	if _, err := s.Answer(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan relay.Result, 1)
	go func() { _ = s.Relay(near, nil, send(done)) }()
	pass(t, client, server, "x")
	s.Abort(cause)
	if r := within(t, done); r.End != relay.Aborted || !errors.Is(r.Err, cause) {
		t.Errorf("aborted: %+v", r)
	}
	if r := within(t, farDone); r.End != relay.ResetByPeer {
		t.Errorf("far side of an abort: %+v", r)
	}
	expectReset(t, client, false)
	expectReset(t, server, false)
}

func TestLossOfTunnelIsReset(t *testing.T) {
	cases := map[string]func(*net.TCPConn){
		"FIN": func(c *net.TCPConn) { c.CloseWrite() },
		"RST": func(c *net.TCPConn) {
			c.SetLinger(0)
			c.Close()
		},
	}
	for name, kill := range cases {
		t.Run(name, func(t *testing.T) {
			w, client, server, done, farDone := ends(t)
			kill(w.tunnel(0))
			for _, r := range []relay.Result{within(t, done), within(t, farDone)} {
				if r.End != relay.Lost {
					t.Errorf("result %+v", r)
				}
			}
			expectReset(t, client, false)
			expectReset(t, server, false)
		})
	}
}

// expectReset drains c and wants RST at the end, without FIN before it unless
// there was one already.
func expectReset(t *testing.T, c *net.TCPConn, fin bool) {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, c)
	if fin {
		s, e := relay.NewSocket(c)
		must(t, e)
		err = s.WaitReset()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("want a reset, got %v", err)
	}
}

// What is on its way when a stream is reset must not end the connection that
// it shares with others.
func TestResetsLeaveOthersAlone(t *testing.T) {
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		target := application(t, echo)
		if s.Authority() == "10.0.0.9:9" {
			target = application(t, func(c *net.TCPConn) { // takes a little and resets
				io.ReadFull(c, make([]byte, 100_000))
				c.SetLinger(0)
			})
		}
		forward(target)(ctx, s)
	})
	steady, steadyDone := w.connect("10.0.0.1:80")
	steady.SetDeadline(time.Now().Add(patience))
	exchangeOnce(t, steady, []byte("before"))
	for range 100 {
		app, done := w.connect("10.0.0.9:9")
		go app.Write(make([]byte, 1<<20))
		if r := within(t, done); r.End != relay.ResetByPeer && r.End != relay.ResetByApp {
			t.Fatalf("result %+v", r)
		}
		app.Close()
	}
	exchangeOnce(t, steady, []byte("after"))
	steady.CloseWrite()
	if r := within(t, steadyDone); r.End != relay.Finished {
		t.Errorf("result %+v", r)
	}
	if n := w.dialed(); n != 1 {
		t.Errorf("%d connections, want the first to live on", n)
	}
}
