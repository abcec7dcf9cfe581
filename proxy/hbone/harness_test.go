package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds each wait for something that is sure to come about, also
// with the race detector on a busy machine.
const patience = 2 * time.Minute

// authority is a test's certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert: cert, key: key, pool: pool}
}

func (a *authority) issue(t testing.TB, id string, life time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	uri, err := url.Parse(id)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) config(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool,
		InsecureSkipVerify:     true, // the SPIFFE ids are not what is tested here
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
}

// world is a pool and a server over TLS on loopback.
type world struct {
	t         testing.TB
	ca        *authority
	pool      *Pool
	listener  net.Listener
	serverTLS *tls.Config
	serverEnd func() time.Time // of its certificate; nil: as the options say
	key       Key
	dials     int
	parking   *relay.Parking
	ended     chan *ConnError // of the server's connections
	mu        sync.Mutex
	conns     []*net.TCPConn // accepted tunnel connections
}

type worldOptions struct {
	server     ServerConfig
	clientLife time.Duration
	serverLife time.Duration
	client     PoolConfig    // its timing and timeouts
	idle       time.Duration // until a stream is parked; 0: so soon that most are
}

func newWorld(t testing.TB, handler Handler, opts ...worldOptions) *world {
	t.Helper()
	var o worldOptions
	if len(opts) > 0 {
		o = opts[0]
	}
	if o.clientLife == 0 {
		o.clientLife = time.Hour
	}
	if o.serverLife == 0 {
		o.serverLife = time.Hour
	}
	w := &world{t: t, ca: newAuthority(t), ended: make(chan *ConnError, 100)}
	var err error
	w.listener, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.key = Key{SourceUID: "client", Destination: netip.MustParseAddrPort(w.listener.Addr().String())}
	w.serverTLS = w.ca.config(w.ca.issue(t, "spiffe://td/ns/b/sa/server", o.serverLife))
	clientCert := w.ca.issue(t, "spiffe://td/ns/a/sa/client", o.clientLife)

	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	if o.idle == 0 {
		o.idle = time.Millisecond
	}
	w.parking = park(t, o.idle)
	serving.Go(func() {
		for {
			nc, err := w.listener.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns = append(w.conns, nc.(*net.TCPConn))
			w.mu.Unlock()
			serving.Go(func() {
				wire, err := NewWire(nc.(*net.TCPConn))
				if err != nil {
					nc.Close()
					return
				}
				tc := tls.Server(wire, w.serverTLS)
				if tc.Handshake() != nil {
					nc.Close()
					return
				}
				config := o.server
				config.Parking = w.parking
				if w.serverEnd != nil {
					config.NotAfter = w.serverEnd()
				}
				err = Serve(ctx, tc, config, handler)
				var ce *ConnError
				errors.As(err, &ce)
				select {
				case w.ended <- ce:
				default:
				}
			})
		}
	})
	config := o.client
	config.Parking = w.parking
	config.DialTimeout = patience
	if config.AnswerTimeout == 0 {
		config.AnswerTimeout = patience
	}
	config.Dial = func(ctx context.Context, k Key) (*net.TCPConn, error) {
		w.mu.Lock()
		w.dials++
		w.mu.Unlock()
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", k.Destination.String())
		if err != nil {
			return nil, err
		}
		return nc.(*net.TCPConn), nil
	}
	config.TLS = func(context.Context, Key) (*tls.Config, time.Time, error) {
		return w.ca.config(clientCert), clientCert.Leaf.NotAfter, nil
	}
	w.pool = NewPool(config)
	t.Cleanup(func() {
		w.pool.Close()
		w.listener.Close()
		cancel()
		serving.Wait()
	})
	return w
}

// park makes a place for what is idle for so long, which ends with the test.
func park(t testing.TB, idle time.Duration) *relay.Parking {
	t.Helper()
	parking, err := relay.NewParking(idle)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- parking.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("parking ended: %v", err)
		}
	})
	return parking
}

// dialed is how many connections the pool made.
func (w *world) dialed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials
}

// tunnel is the server's end of the n-th connection.
func (w *world) tunnel(n int) *net.TCPConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[n]
}

// open begins a stream to authority.
func (w *world) open(authority string) *Stream {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := w.pool.Open(ctx, w.key, Request{Authority: authority})
	must(w.t, err)
	return s
}

// connect tunnels a new connection of an application to the server's handler
// and returns the application's end and the relay's outcome.
func (w *world) connect(authority string) (*net.TCPConn, chan relay.Result) {
	w.t.Helper()
	app, near := tcpPair(w.t)
	done := make(chan relay.Result, 1)
	s := w.open(authority)
	go func() {
		err := s.Relay(near, nil, send(done))
		if err != nil {
			near.SetLinger(0)
			near.Close()
			r := s.result()
			r.Err = err
			done <- r
		}
	}()
	return app, done
}

// send is what tells a channel how a relay ended.
func send(to chan<- relay.Result) func(relay.Result) { return func(r relay.Result) { to <- r } }

// ignore is for relays whose end is not looked at.
func ignore(relay.Result) {}

// forward is a handler that connects each stream to the listener.
func forward(target net.Addr) Handler {
	return func(ctx context.Context, s *ServerStream) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", target.String())
		if err != nil {
			s.Refuse(503)
			return
		}
		s.Accept()
		s.Relay(nc.(*net.TCPConn), ignore)
	}
}

// application listens and hands each connection to serve.
func application(t testing.TB, serve func(*net.TCPConn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer nc.Close()
				serve(nc.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr()
}

func echo(c *net.TCPConn) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	c.CloseWrite()
}

// tcpPair is a loopback connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	accepted, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { dialed.Close() })
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// descriptors counts this process's open descriptors.
func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(d)
}

func within[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing happened in %v", patience)
		panic("unreachable")
	}
}

// eventually polls for what offers no event.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-poll.C {
		if time.Now().After(deadline) {
			t.Errorf("did not come about in %v", patience)
			return
		}
	}
}
