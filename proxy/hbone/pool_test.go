package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// hold accepts streams and keeps them until the client ends them.
func hold(_ context.Context, s *ServerStream) {
	s.Accept()
	<-s.Done()
	s.End()
}

// accepted opens a stream and waits for its answer.
func (w *world) accepted() *Stream {
	w.t.Helper()
	s := w.open("10.0.0.1:80")
	if _, err := s.Answer(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestPoolShares(t *testing.T) {
	w := newWorld(t, hold)
	var all sync.WaitGroup
	for range clientStreams { // at once: they share one dial
		all.Go(func() { w.accepted() })
	}
	all.Wait()
	if n := w.dialed(); n != 1 {
		t.Fatalf("%d connections for %d streams", n, clientStreams)
	}
	w.accepted()
	if n := w.dialed(); n != 2 {
		t.Errorf("%d connections for %d streams", n, clientStreams+1)
	}
	if conns, streams := w.pool.Stats(); conns != 2 || streams != clientStreams+1 {
		t.Errorf("%d connections, %d streams", conns, streams)
	}
}

func TestPoolKeysAreApart(t *testing.T) {
	w := newWorld(t, hold)
	first := w.accepted()
	w.key.SourceUID = "another pod with the same address and identity"
	second := w.accepted()
	if first.c == second.c {
		t.Error("two pods share a connection")
	}
}

func TestPoolEvict(t *testing.T) {
	for _, now := range []bool{false, true} {
		w := newWorld(t, hold)
		old := w.accepted()
		w.pool.Evict(func(k Key) bool { return k.SourceUID == "somebody else" }, true)
		if old.c != w.accepted().c {
			t.Fatal("an eviction of another key took effect")
		}
		w.pool.Evict(func(k Key) bool { return k == w.key }, now)
		if old.c == w.accepted().c {
			t.Error("a new stream on an evicted connection")
		}
		if now {
			within(t, old.Done())
			continue
		}
		select {
		case <-old.Done():
			t.Error("eviction ended a stream")
		default:
		}
	}
}

func TestPoolDialFails(t *testing.T) {
	var mu sync.Mutex
	dials := 0
	gate := make(chan struct{})
	refused := errors.New("connection refused")
	p := NewPool(PoolConfig{
		TLS: func(context.Context, Key) (*tls.Config, time.Time, error) { return &tls.Config{}, time.Time{}, nil },
		Dial: func(context.Context, Key) (*net.TCPConn, error) {
			mu.Lock()
			dials++
			mu.Unlock()
			<-gate
			return nil, refused
		},
	})
	defer p.Close()
	errs := make(chan error, 5)
	for range cap(errs) {
		go func() {
			_, err := p.Open(t.Context(), Key{}, Request{Authority: "10.0.0.1:80"})
			errs <- err
		}()
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Open(impatient, Key{}, Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up got %v", err)
	}
	close(gate)
	for range cap(errs) {
		err := within(t, errs)
		var dial *DialError
		if !errors.As(err, &dial) || !errors.Is(err, refused) {
			t.Errorf("got %v", err)
		}
	}
	eventually(t, func() bool { // it holds nothing of a peer that is not there
		for i := range p.shards {
			p.shards[i].mu.Lock()
			n := len(p.shards[i].entries)
			p.shards[i].mu.Unlock()
			if n != 0 {
				return false
			}
		}
		return true
	})
}

func TestServerRefusesCertificate(t *testing.T) {
	w := newWorld(t, hold)
	other := newAuthority(t)
	foreign := other.issue(t, "spiffe://td/ns/a/sa/foreign", time.Hour)
	w.pool.config.TLS = func(context.Context, Key) (*tls.Config, time.Time, error) {
		return w.ca.config(foreign), time.Time{}, nil
	}
	_, near := tcpPair(t)
	defer near.Close()
	// The client's handshake ends before the server has seen its certificate.
	err := w.open("10.0.0.1:80").Relay(near, nil, ignore)
	var refused *RefusedError
	if !errors.As(err, &refused) || !refused.Retryable() {
		t.Errorf("got %v", err)
	}
}

func TestCertificatesEnd(t *testing.T) {
	t.Run("before the dial", func(t *testing.T) {
		w := newWorld(t, hold, worldOptions{serverLife: -time.Minute})
		if _, err := w.pool.Open(t.Context(), w.key, Request{Authority: "10.0.0.1:80"}); !errors.As(err, new(*DialError)) {
			t.Errorf("a stream to an expired server: %v", err)
		}
	})
	t.Run("of the client", func(t *testing.T) {
		w := newWorld(t, hold)
		first := w.accepted()
		first.c.mu.Lock()
		first.c.notAfter = time.Now()
		first.c.mu.Unlock()
		if second := w.accepted(); first.c == second.c {
			t.Error("a new stream after the certificate's end")
		}
		first.End()
		within(t, first.Done())
		if first.Err() != nil {
			t.Errorf("the stream before it: %v", first.Err())
		}
	})
	t.Run("of the server", func(t *testing.T) {
		w := newWorld(t, hold, worldOptions{server: ServerConfig{NotAfter: time.Now()}})
		_, err := w.open("10.0.0.1:80").Answer(t.Context())
		var refused *RefusedError
		if !errors.As(err, &refused) || !refused.Retryable() {
			t.Errorf("a server with an expired certificate answered %v", err)
		}
		if end := within(t, w.ended); end.Cause != CauseClosed {
			t.Errorf("connection ended by %v", end)
		}
	})
}

func TestServerDrains(t *testing.T) {
	drain, cancel := context.WithCancel(context.Background())
	w := newWorld(t, forward(application(t, echo)), worldOptions{server: ServerConfig{Drain: drain}})
	app, done := w.connect("10.0.0.1:80")
	exchangeOnce(t, app, []byte("before"))
	cancel()
	client := w.onlyStream().c
	eventually(t, func() bool { client.mu.Lock(); defer client.mu.Unlock(); return client.drain != serving })
	exchangeOnce(t, app, []byte("while it drains"))
	app.CloseWrite()
	if r := within(t, done); r.End != relay.Finished {
		t.Errorf("result %+v", r)
	}
	if end := within(t, w.ended); end.Cause != CauseClosed {
		t.Errorf("drained connection ended by %v", end)
	}
}

func TestIdleConnectionCloses(t *testing.T) {
	closed := make(chan *ConnError, 1)
	w := newWorld(t, hold, worldOptions{client: PoolConfig{
		timing: timing{tick: 10 * time.Millisecond, settle: time.Minute, ping: time.Minute, idle: time.Minute},
		Closed: func(_ Key, e *ConnError) { closed <- e },
	}})
	s := w.accepted()
	s.c.mu.Lock()
	s.c.timing.idle = 50 * time.Millisecond // not before the stream is there, however slow the machine
	s.c.mu.Unlock()
	select {
	case <-closed:
		t.Fatal("a connection with a stream is not idle")
	case <-time.After(150 * time.Millisecond):
	}
	s.End()
	if end := within(t, closed); end.Cause != CauseClosed {
		t.Errorf("idle connection ended by %v", end)
	}
	if end := within(t, w.ended); end.Cause != CauseClosed {
		t.Errorf("at the server: %v", end)
	}
}

// A peer that is there and silent is found by PING.
func TestDeadPeer(t *testing.T) {
	w := newWorld(t, hold, worldOptions{client: PoolConfig{
		timing: timing{tick: time.Second, settle: time.Minute, ping: time.Minute, idle: time.Minute},
	}})
	alive := w.accepted()
	rtt := func() time.Duration {
		alive.c.mu.Lock()
		defer alive.c.mu.Unlock()
		return alive.c.rtt
	}
	eventually(t, func() bool { return rtt() > 0 }) // by SETTINGS
	first := rtt()
	eventually(t, func() bool { return rtt() != first }) // by a PING that was answered
	server, near := tcpPair(t)                           // a peer whose kernel acknowledges, and no more
	wire, err := NewWire(near)
	must(t, err)
	c := newConn(wire, nil, nil, certificateEnd{}, timing{tick: 10 * time.Millisecond, settle: time.Minute, ping: 50 * time.Millisecond, idle: time.Minute})
	c.greetPeer()
	c.settled.Store(true)
	s := c.openStream(Request{Authority: "10.0.0.1:80"}, time.Minute)
	if end := c.run(); end.Cause != CausePingTimeout {
		t.Errorf("ended by %v", end)
	}
	within(t, s.Done())
	server.Close()
	if alive.Err() != nil {
		t.Errorf("PING ended a living connection: %v", alive.Err())
	}
}

func TestPoolClose(t *testing.T) {
	w := newWorld(t, hold)
	s := w.accepted()
	before := descriptors(t)
	w.pool.Close()
	within(t, s.Done())
	within(t, w.ended)
	if after := descriptors(t); after > before-2 {
		t.Errorf("%d descriptors before, %d after both ends closed", before, after)
	}
	if _, err := w.pool.Open(t.Context(), w.key, Request{}); !errors.Is(err, errPoolClosed) {
		t.Errorf("a closed pool opened a stream: %v", err)
	}
}

// A peer that is no longer accepted loses its streams and its connection; the
// next stream has another.
func TestPoolRecheck(t *testing.T) {
	w := newWorld(t, hold)
	kept := w.accepted()
	w.pool.Recheck(func(k Key, peer []*x509.Certificate) error {
		if k != w.key || len(peer) == 0 {
			t.Errorf("asked about %v with %d certificates", k, len(peer))
		}
		return nil
	})
	if kept.Err() != nil {
		t.Fatalf("an accepted peer's stream has ended: %v", kept.Err())
	}
	w.pool.Recheck(func(Key, []*x509.Certificate) error { return errors.New("taken back") })
	within(t, kept.Done())
	if next := w.accepted(); next.c == kept.c || w.dialed() != 2 {
		t.Errorf("%d connections were dialed", w.dialed())
	}
}
