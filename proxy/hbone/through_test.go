package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// border is a gateway in front of a server, each with an authority of its own.
type border struct {
	t       *testing.T
	gateway *world
	far     *world
	inner   Inner
	asked   chan string // of the gateway
}

func newBorder(t *testing.T, handler Handler) *border {
	b := &border{t: t, far: newWorld(t, handler), asked: make(chan string, 100)}
	b.gateway = newWorld(t, func(ctx context.Context, s *ServerStream) {
		b.asked <- s.Authority()
		forward(b.far.listener.Addr())(ctx, s)
	})
	cert := b.far.ca.issue(t, "spiffe://td/ns/a/sa/client", time.Hour)
	b.inner = Inner{TLS: b.far.ca.config(cert), NotAfter: cert.Leaf.NotAfter, Request: Request{Authority: "web.example:80"}}
	return b
}

func (b *border) open(ctx context.Context) (*Stream, error) {
	return b.gateway.pool.OpenThrough(ctx, b.gateway.key, Request{Authority: "web.example:80"}, b.inner)
}

// connect relays a new connection of an application through the gateway.
func (b *border) connect() (*net.TCPConn, chan relay.Result) {
	b.t.Helper()
	s, err := b.open(b.t.Context())
	must(b.t, err)
	app, near := tcpPair(b.t)
	done := make(chan relay.Result, 1)
	go func() {
		if err := s.Relay(near, nil, send(done)); err != nil {
			r := s.result()
			r.Err = err
			done <- r
		}
	}()
	return app, done
}

// Bytes arrive whole, many windows of both tunnels, and the end of each side is
// an orderly one. The tunnel to the gateway is shared, that inside is not.
func TestTunnelWithinATunnel(t *testing.T) {
	named := make(chan string, 100)
	echoing := application(t, echo)
	b := newBorder(t, func(ctx context.Context, s *ServerStream) {
		named <- s.Authority()
		forward(echoing)(ctx, s)
	})
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for range 3 {
		app, ended := b.connect()
		go func() {
			_, _ = app.Write(sent)
			_ = app.CloseWrite()
		}()
		got, err := io.ReadAll(app)
		must(t, err)
		if !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes came back, not those %d that were sent", len(got), len(sent))
		}
		if r := within(t, ended); r.End != relay.Finished {
			t.Errorf("the stream ended as %v: %v", r.End, r.Err)
		}
		if gateway, far := within(t, b.asked), within(t, named); gateway != "web.example:80" || far != gateway {
			t.Errorf("asked for %q at the gateway, %q behind it", gateway, far)
		}
		if e := within(t, b.far.ended); e.Cause != CauseClosed {
			t.Errorf("the inner connection ended as %v", e)
		}
	}
	if n := b.gateway.dialed(); n != 1 {
		t.Errorf("%d connections to the gateway", n)
	}
}

// What the far application does reaches the near one as it was.
func TestResetThroughAGateway(t *testing.T) {
	resetting := application(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})
	b := newBorder(t, forward(resetting))
	app, ended := b.connect()
	_, err := app.Write([]byte("x"))
	must(t, err)
	if r := within(t, ended); r.End != relay.ResetByPeer {
		t.Errorf("ended as %v: %v", r.End, r.Err)
	}
}

// Who is refused by the gateway or by who is behind it is told by which.
func TestRefusedOnTheWay(t *testing.T) {
	b := newBorder(t, func(_ context.Context, s *ServerStream) { s.Refuse(401) })
	s, err := b.open(t.Context())
	must(t, err)
	if _, err := s.Answer(t.Context()); status(err) != 401 {
		t.Errorf("behind the gateway: %v", err)
	}

	closed := newWorld(t, func(_ context.Context, s *ServerStream) { s.Refuse(503) })
	if _, err := closed.pool.OpenThrough(t.Context(), closed.key, Request{Authority: "web.example:80"}, b.inner); status(err) != 503 {
		t.Errorf("by the gateway: %v", err)
	}
}

func status(err error) int {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Status
	}
	return 0
}

// Somebody else behind the gateway, or nobody, gets nothing.
func TestStrangersBehindTheGateway(t *testing.T) {
	b := newBorder(t, func(_ context.Context, s *ServerStream) { s.Accept() })
	b.inner.TLS = b.inner.TLS.Clone()
	b.inner.TLS.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not the server that was meant") }
	_, err := b.open(t.Context())
	if failed := (*DialError)(nil); !errors.As(err, &failed) || !strings.Contains(err.Error(), "not the server that was meant") {
		t.Errorf("a stranger: %v", err)
	}

	silent := application(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	b = newBorder(t, nil)
	b.gateway = newWorld(t, forward(silent))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.open(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

// A gateway that is lost takes the connections through it along.
func TestGatewayIsLost(t *testing.T) {
	b := newBorder(t, forward(application(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })))
	app, ended := b.connect()
	_, err := app.Write([]byte("x"))
	must(t, err)
	b.gateway.pool.Evict(func(Key) bool { return true }, true)
	if r := within(t, ended); r.End != relay.Lost {
		t.Errorf("ended as %v: %v", r.End, r.Err)
	}
	if connections, streams := b.gateway.pool.Stats(); connections > 2 || streams > 0 {
		t.Errorf("%d connections with %d streams are left", connections, streams)
	}
}
