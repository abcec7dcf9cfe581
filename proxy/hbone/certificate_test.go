package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// shortLife is that of certificates whose end a test waits for. It is counted
// in whole seconds on the wire.
const shortLife = 3 * time.Second

// mortal is a world in which one side's certificates are new for each
// connection and end soon.
type mortal struct {
	*world
	notAfter atomic.Pointer[time.Time] // of the newest connection's
}

func newMortal(t *testing.T, ofServer bool, grace time.Duration) *mortal {
	ticking := timing{tick: 20 * time.Millisecond, settle: time.Minute, ping: time.Minute, idle: time.Minute}
	m := &mortal{}
	client := PoolConfig{Grace: grace, timing: ticking}
	server := ServerConfig{timing: ticking}
	if ofServer { // the server's own word, too, must end them
		client.Grace, server.Grace = 0, grace
	}
	m.world = newWorld(t, forward(application(t, echo)), worldOptions{client: client, server: server})
	lasting := m.ca.issue(t, "spiffe://td/ns/a/sa/client", time.Hour)
	m.pool.config.TLS = func(context.Context, Key) (*tls.Config, time.Time, error) {
		cert := m.ca.issue(t, "spiffe://td/ns/a/sa/client", shortLife)
		m.notAfter.Store(&cert.Leaf.NotAfter)
		return m.ca.config(cert), cert.Leaf.NotAfter, nil
	}
	if ofServer {
		m.serverTLS.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert := m.ca.issue(t, "spiffe://td/ns/b/sa/server", shortLife)
			m.notAfter.Store(&cert.Leaf.NotAfter)
			return &cert, nil
		}
		m.serverTLS.Certificates = nil
		m.serverEnd = func() time.Time { return *m.notAfter.Load() }
		m.pool.config.TLS = func(context.Context, Key) (*tls.Config, time.Time, error) {
			return m.ca.config(lasting), lasting.Leaf.NotAfter, nil
		}
	}
	return m
}

// established is an application's connection through a tunnel that was made
// within the life of its certificate, however slow the machine.
func (m *mortal) established() (app *net.TCPConn, done chan relay.Result, of *conn) {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		s, err := m.pool.Open(m.t.Context(), m.key, Request{Authority: "10.0.0.1:80"})
		if errors.As(err, new(*DialError)) {
			continue
		}
		must(m.t, err)
		if _, err := s.Answer(m.t.Context()); err != nil {
			continue
		}
		app, near := tcpPair(m.t)
		done := make(chan relay.Result, 1)
		go func() {
			if s.Relay(near, nil, send(done)) != nil {
				done <- s.result()
			}
		}()
		return app, done, s.c
	}
	m.t.Fatal("no connection within the life of a certificate")
	return nil, nil, nil
}

func (m *mortal) awaitEnd() {
	end := time.NewTimer(time.Until(*m.notAfter.Load()))
	defer end.Stop()
	<-end.C
}

// TestStreamsOutliveCertificates: those there are go on; none comes to them.
func TestStreamsOutliveCertificates(t *testing.T) {
	for name, ofServer := range map[string]bool{"of the client": false, "of the server": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMortal(t, ofServer, 0)
			app, done, first := m.established()
			exchangeOnce(t, app, []byte("while it is valid"))
			m.awaitEnd()
			exchangeOnce(t, app, []byte("after its end"))
			later, laterDone, second := m.established()
			if first == second {
				t.Error("a new stream on a connection whose certificate has ended")
			}
			exchangeOnce(t, later, []byte("with the next certificate"))
			eventually(t, func() bool { first.mu.Lock(); defer first.mu.Unlock(); return first.drain != serving })
			exchangeOnce(t, app, []byte("beside it"))
			for _, app := range []*net.TCPConn{app, later} {
				must(t, app.CloseWrite())
			}
			for _, done := range []chan relay.Result{done, laterDone} {
				if r := within(t, done); r.End != relay.Finished {
					t.Errorf("a stream ended with %+v", r)
				}
			}
		})
	}
}

func TestGraceOfStreamsEnds(t *testing.T) {
	for name, ofServer := range map[string]bool{"of the client": false, "of the server": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMortal(t, ofServer, time.Millisecond)
			app, done, _ := m.established()
			m.awaitEnd()
			if r := within(t, done); r.End != relay.Lost {
				t.Errorf("the stream ended with %+v", r)
			}
			if !time.Now().After(*m.notAfter.Load()) {
				t.Error("the stream ended before the certificate")
			}
			if n, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the application read %d bytes and %v, want RST", n, err)
			}
			end := within(t, m.ended)
			if ofServer && end.Cause != CauseCertificate {
				t.Errorf("at the server: %v", end)
			}
		})
	}
}
