package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Key names what may share a connection. Connections are never shared between
// pods, whatever their addresses and identities.
type Key struct {
	SourceUID      string
	Source         netip.Addr
	Identity       model.Identity // of the source
	DestinationUID string
	Destination    netip.AddrPort // what is dialed
	Accepted       string         // identities of the server, in a canonical form of the caller's
}

// PoolConfig says how connections are made. Dial and TLS are required.
type PoolConfig struct {
	Dial func(context.Context, Key) (*net.TCPConn, error)
	// TLS is the configuration that verifies the server by Key.Accepted, and
	// when the certificate in it ends.
	TLS func(context.Context, Key) (*tls.Config, time.Time, error)

	// WithTimeout is context.WithTimeout, or the like by another clock.
	WithTimeout   func(context.Context, time.Duration) (context.Context, context.CancelFunc)
	DialTimeout   time.Duration         // dial and handshake; 10 s
	AnswerTimeout time.Duration         // from Open to the answer; 20 s
	Grace         time.Duration         // of streams, once either side's certificate has ended; 0: without end
	Budget        func(Key) *Budget     // receive memory of the source pod; nil: 64 MiB per connection
	Parking       *relay.Parking        // takes idle streams, which then have no goroutine; nil: none does
	Closed        func(Key, *ConnError) // a connection ended

	timing timing
}

// Pool holds the client's connections of all pods of a node.
type Pool struct {
	config PoolConfig
	seed   maphash.Seed
	shards [64]shard // by key: no lock is shared by all connections

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

type shard struct {
	mu      sync.Mutex
	closed  bool
	entries map[Key]*entry
}

// entry is all there is for one key.
type entry struct {
	mu        sync.Mutex
	conns     []*conn
	dialing   *dialing
	evictions int
}

// dialing is one attempt, shared by all who wait for it.
type dialing struct {
	done chan struct{}
	err  error // valid after done
}

// NewPool makes an empty pool. Run or Close ends it.
func NewPool(config PoolConfig) *Pool {
	if config.DialTimeout == 0 {
		config.DialTimeout = 10 * time.Second
	}
	if config.AnswerTimeout == 0 {
		config.AnswerTimeout = 20 * time.Second
	}
	if config.WithTimeout == nil {
		config.WithTimeout = context.WithTimeout
	}
	if config.Closed == nil {
		config.Closed = func(Key, *ConnError) {}
	}
	if config.Budget == nil {
		config.Budget = func(Key) *Budget { return nil }
	}
	p := &Pool{config: config, seed: maphash.MakeSeed()}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for i := range p.shards {
		p.shards[i].entries = make(map[Key]*entry)
	}
	return p
}

// Run waits until ctx ends, then closes the pool.
func (p *Pool) Run(ctx context.Context) error {
	<-ctx.Done()
	p.Close()
	return ctx.Err()
}

// Close ends all connections at once and waits until they are gone.
func (p *Pool) Close() {
	p.cancel()
	for i := range p.shards {
		sh := &p.shards[i]
		sh.mu.Lock()
		sh.closed = true
		sh.mu.Unlock()
	}
	p.Evict(func(Key) bool { return true }, true)
	p.running.Wait()
}

var errPoolClosed = errors.New("pool is closed")

// Open begins a stream, on a connection that exists or on a new one. The error
// is a *DialError, or the context's. The caller must call Relay, Answer or
// Reset next: the request is written with what they send.
func (p *Pool) Open(ctx context.Context, key Key, r Request) (*Stream, error) {
	for range mostDials {
		s, d, err := p.try(key, r)
		if s != nil || err != nil {
			return s, err
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, &DialError{Key: key, Err: d.err}
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("hbone connection to %s: %w", key.Destination, context.Cause(ctx))
		}
	}
	return nil, &DialError{Key: key, Err: errNoStreams}
}

// mostDials bounds how many connections one stream waits for in turn: a peer
// may use each of them only to say that it takes no streams. Others who wait
// may fill some, too.
const mostDials = 64

var errNoStreams = errors.New("peer takes no streams on the connections to it")

// try returns a stream, or the attempt to wait for.
func (p *Pool) try(key Key, r Request) (*Stream, *dialing, error) {
	e, err := p.entry(key)
	if err != nil {
		return nil, nil, err
	}
	defer e.mu.Unlock()
	for _, c := range e.conns {
		if s := c.openStream(r, p.config.AnswerTimeout); s != nil {
			return s, nil, nil
		}
	}
	if e.dialing == nil {
		d := &dialing{done: make(chan struct{})}
		e.dialing = d
		evictions := e.evictions
		p.running.Go(func() { p.connect(key, e, d, evictions) })
	}
	return nil, e.dialing, nil
}

// entry returns the key's entry, locked.
func (p *Pool) entry(key Key) (*entry, error) {
	sh := p.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return nil, errPoolClosed
	}
	e := sh.entries[key]
	if e == nil {
		e = new(entry)
		sh.entries[key] = e
	}
	e.mu.Lock()
	return e, nil
}

func (p *Pool) shard(key Key) *shard {
	return &p.shards[maphash.Comparable(p.seed, key)%uint64(len(p.shards))]
}

// connect makes one connection for all who wait for it.
func (p *Pool) connect(key Key, e *entry, d *dialing, evictions int) {
	c, err := p.dial(key)
	e.mu.Lock()
	e.dialing = nil
	if err == nil {
		e.conns = append(e.conns, c)
		p.running.Go(func() { p.run(key, e, c) })
		if e.evictions != evictions { // while it was dialed: with an old certificate, to an old pod
			c.goAway()
		}
	}
	e.mu.Unlock()
	d.err = err
	close(d.done)
	p.tidy(key)
}

func (p *Pool) dial(key Key) (*conn, error) {
	ctx, cancel := p.config.WithTimeout(p.ctx, p.config.DialTimeout)
	defer cancel()
	config, notAfter, err := p.config.TLS(ctx, key)
	if err != nil {
		return nil, err
	}
	tcp, err := p.config.Dial(ctx, key)
	if err != nil {
		return nil, err
	}
	wire, err := NewWire(tcp)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	config = config.Clone()
	config.DynamicRecordSizingDisabled = true // made for browsers: here frames are small or bulk
	c, err := p.greet(ctx, key, tls.Client(wire, config), notAfter)
	if err != nil {
		tcp.Close()
	}
	return c, err
}

// ErrCertificateEnded is that a certificate ended while a connection was made.
var ErrCertificateEnded = errors.New("a certificate ended")

// greet authenticates the peer of a new connection and says the first words.
func (p *Pool) greet(ctx context.Context, key Key, nc *tls.Conn, notAfter time.Time) (*conn, error) {
	if err := nc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	state := nc.ConnectionState()
	if state.NegotiatedProtocol != http2.NextProtoTLS {
		return nil, fmt.Errorf("TLS handshake: peer does not speak HTTP/2 (ALPN %q)", state.NegotiatedProtocol)
	}
	end := earlier(notAfter, peerEnd(state))
	if !end.IsZero() && !time.Now().Before(end) {
		return nil, fmt.Errorf("TLS handshake: %w at %v", ErrCertificateEnded, end)
	}
	c := newConn(nc, nil, p.config.Budget(key), certificateEnd{end, p.config.Grace}, p.config.timing)
	c.parking = p.config.Parking
	c.greetPeer()
	return c, nil
}

// peerEnd is when the peer's certificate ends; zero without one.
func peerEnd(state tls.ConnectionState) time.Time {
	if len(state.PeerCertificates) == 0 {
		return time.Time{}
	}
	return state.PeerCertificates[0].NotAfter
}

// earlier returns the earlier of two ends, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (p *Pool) run(key Key, e *entry, c *conn) {
	c.flush() // the first stream does it, if there still is one
	err := c.run()
	e.mu.Lock()
	for i := range e.conns {
		if e.conns[i] == c {
			e.conns = append(e.conns[:i], e.conns[i+1:]...)
			break
		}
	}
	e.mu.Unlock()
	p.tidy(key)
	p.config.Closed(key, err)
}

// tidy forgets an entry that holds nothing.
func (p *Pool) tidy(key Key) {
	sh := p.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.entries[key]
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.conns) == 0 && e.dialing == nil {
		delete(sh.entries, key)
	}
}

// Evict makes the connections whose key matches take no new streams: they end
// with their last stream. With now they end at once, and applications see RST.
func (p *Pool) Evict(match func(Key) bool, now bool) {
	for _, c := range p.matching(match) {
		if now {
			c.close(&ConnError{CauseCanceled, errEvicted})
		} else {
			c.goAway()
		}
	}
}

var errEvicted = errors.New("evicted")

// Recheck ends at once the connections whose peer is not accepted any more by
// the certificates that it showed. Those being made take no second stream.
func (p *Pool) Recheck(accepted func(Key, []*x509.Certificate) error) {
	type found struct {
		key Key
		*conn
	}
	var all []found
	for i := range p.shards {
		sh := &p.shards[i]
		sh.mu.Lock()
		for key, e := range sh.entries {
			e.mu.Lock()
			e.evictions++
			for _, c := range e.conns {
				all = append(all, found{key, c})
			}
			e.mu.Unlock()
		}
		sh.mu.Unlock()
	}
	for _, f := range all {
		if t, ok := f.nc.(*tls.Conn); ok {
			if err := accepted(f.key, t.ConnectionState().PeerCertificates); err != nil {
				f.close(&ConnError{CauseCanceled, err})
			}
		}
	}
}

func (p *Pool) matching(match func(Key) bool) []*conn {
	var found []*conn
	for i := range p.shards {
		sh := &p.shards[i]
		sh.mu.Lock()
		for key, e := range sh.entries {
			if match(key) {
				e.mu.Lock()
				e.evictions++
				found = append(found, e.conns...)
				e.mu.Unlock()
			}
		}
		sh.mu.Unlock()
	}
	return found
}

// Stats counts connections and the streams on them.
func (p *Pool) Stats() (connections, streams int) {
	for i := range p.shards {
		sh := &p.shards[i]
		sh.mu.Lock()
		for _, e := range sh.entries {
			e.mu.Lock()
			connections += len(e.conns)
			for _, c := range e.conns {
				streams += c.load()
			}
			e.mu.Unlock()
		}
		sh.mu.Unlock()
	}
	return connections, streams
}
