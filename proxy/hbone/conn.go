package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/h2"
	"github.com/tacit-mesh/tacit/proxy/relay"
)

// conn is one HTTP/2 connection, either end of it.
type conn struct {
	nc     net.Conn
	wire   *Wire // nil where nc is not made on one: then reads block with a buffer
	server *server
	budget *Budget
	timing timing

	parking *relay.Parking // of idle streams; may be nil

	reader // used by the reading goroutine alone
	mu     sync.Mutex
	writer // guarded by mu
	state  // guarded by mu
	timer  *time.Timer
}

// state is what both ends know of their streams.
type state struct {
	streams   map[uint32]*stream
	lastID    uint32       // highest stream the client has opened
	resets    resetLog     // of this end
	updates   h2.Allowance // WINDOW_UPDATE; what is sent earns them
	peer      settings
	window    int64 // what may be sent on the whole connection
	starved   []*stream
	handlers  int           // server: handlers that run
	notAfter  time.Time     // when the first of both certificates ends
	grace     time.Duration // of streams after that; 0 is without end
	drain     drainState
	single    bool  // client: it is for one stream, with which it ends
	cause     Cause // "" while it lives
	err       error
	idleSince time.Time
	pingSent  time.Time // zero: none is unanswered
	started   time.Time
	rtt       time.Duration
}

// certificateEnd is when a connection takes no new streams any more, and how
// long after that it keeps those that it has.
type certificateEnd struct {
	notAfter time.Time
	grace    time.Duration
}

type drainState uint8

const (
	serving  drainState = iota
	draining            // no new streams from our side; the peer is told
	drained             // the peer has learned it: its newer streams are not served
)

// connError is fatal for the connection; the peer is told the code.
type connError struct {
	code  http2.ErrCode
	cause Cause
	text  string
}

func (e *connError) Error() string { return fmt.Sprintf("%s (%v)", e.text, e.code) }

func protocolError(format string, args ...any) error {
	return &connError{http2.ErrCodeProtocol, CauseProtocol, fmt.Sprintf(format, args...)}
}

func newConn(nc net.Conn, srv *server, budget *Budget, end certificateEnd, t timing) *conn {
	if budget == nil {
		budget = NewBudget(64 << 20)
	}
	now := time.Now()
	c := &conn{nc: nc, server: srv, budget: budget, timing: t.orDefault(srv != nil)}
	c.wire = wireUnder(nc)
	c.streams = make(map[uint32]*stream)
	c.peer = defaultSettings
	c.window = defaultWindow
	c.updates = h2.NewAllowance(10000, 1000)
	c.notAfter, c.grace, c.idleSince, c.started = end.notAfter, end.grace, now, now
	c.reader.init(c)
	c.writer.init()
	return c
}

func wireUnder(nc net.Conn) *Wire {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	w, _ := nc.(*Wire)
	return w
}

// run reads until the connection ends and returns why.
func (c *conn) run() *ConnError {
	c.mu.Lock()
	c.timer = time.AfterFunc(c.timing.tick, c.onTick)
	c.mu.Unlock()

	err := c.readFrames()
	c.close(err)
	<-c.flushed
	c.linger()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := (*ConnError)(nil); errors.As(c.err, &e) {
		return e
	}
	return &ConnError{Cause: c.cause, Err: c.err}
}

// shut ends all reads and writes on the connection without waiting for them.
func (c *conn) shut() {
	switch t, inside := c.nc.(*tls.Conn); {
	case c.wire != nil:
		c.wire.shut()
	case inside:
		t.NetConn().Close() // without a farewell, which could wait
	default:
		c.nc.Close()
	}
}

// abandon lets the kernel forget a connection that was not ended in order: a pod
// whose link is gone has nobody to acknowledge FIN, which would keep its network
// namespace for minutes.
func (c *conn) abandon() {
	c.mu.Lock()
	inOrder := c.cause == CauseClosed
	c.mu.Unlock()
	if tcp, ok := c.wire.Conn.(*net.TCPConn); ok && !inOrder {
		tcp.SetLinger(0)
	}
}

// linger closes the connection. A peer that was told why gets a moment to read
// it: closing with bytes unread would reset the connection and take GOAWAY away.
func (c *conn) linger() {
	if c.wire == nil {
		c.nc.Close()
		return
	}
	defer c.wire.Conn.Close()
	if !c.last {
		c.abandon()
		return
	}
	if t, ok := c.nc.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	c.wire.closeWrite()
	c.wire.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, io.LimitReader(c.wire.Conn, 1<<20))
}

// ConnError says why a tunnel connection ended.
type ConnError struct {
	Cause Cause
	Err   error
}

func (e *ConnError) Error() string { return fmt.Sprintf("hbone connection: %s: %v", e.Cause, e.Err) }
func (e *ConnError) Unwrap() error { return e.Err }

// onTick keeps the connection alive, finds dead peers and closes idle
// connections. A peer that does not read gets no PING, so it cannot answer it:
// that is the deadline of all writes.
func (c *conn) onTick() {
	now := time.Now()
	c.mu.Lock()
	if c.cause != "" {
		c.mu.Unlock()
		return
	}
	expired := !c.notAfter.IsZero() && now.After(c.notAfter)
	switch {
	case expired && c.grace > 0 && now.Sub(c.notAfter) >= c.grace:
		c.mu.Unlock()
		c.close(&ConnError{CauseCertificate, fmt.Errorf("a certificate of the connection ended at %s; its streams had %v more",
			c.notAfter.UTC().Format(time.RFC3339), c.grace)})
		return
	case !c.settled.Load() && now.Sub(c.started) >= c.timing.settle:
		c.mu.Unlock()
		c.close(&ConnError{CauseSlowHandshake, fmt.Errorf("no HTTP/2 SETTINGS in %v", c.timing.settle)})
		return
	case !c.pingSent.IsZero() && now.Sub(c.pingSent) >= c.timing.ping:
		c.mu.Unlock()
		c.close(&ConnError{CausePingTimeout, fmt.Errorf("no answer to PING in %v", c.timing.ping)})
		return
	case len(c.streams) == 0 && c.handlers == 0 && now.Sub(c.idleSince) >= c.timing.idle:
		c.mu.Unlock()
		c.close(&connError{http2.ErrCodeNo, CauseClosed, "idle"})
		return
	case c.pingSent.IsZero():
		c.pingSent = now
		c.control(func(f *http2.Framer) error { return f.WritePing(false, pingData) })
	}
	c.timer.Reset(c.timing.tick)
	c.mu.Unlock()
	if expired {
		c.goAway()
	}
}

// close ends the connection: every stream is lost, the peer is told why if it
// is to blame, and the reading goroutine does the rest. Only the first call
// counts.
func (c *conn) close(err error) {
	c.mu.Lock()
	if c.cause != "" {
		c.mu.Unlock()
		return
	}
	c.cause, c.err = causeOf(err), err
	c.ended.Store(true)
	if c.timer != nil {
		c.timer.Stop()
	}
	streams := c.streams
	c.streams = nil
	c.starved = nil
	if ce := (*connError)(nil); errors.As(err, &ce) {
		c.farewell(ce)
	} else {
		c.shut()
	}
	if !c.busy {
		c.finishWrites()
	}
	c.nc.SetReadDeadline(past) // wakes the reading goroutine
	c.mu.Unlock()
	for _, s := range streams {
		s.fail(failure{end: relay.Lost, err: c.lossOf(err)})
	}
}

func causeOf(err error) Cause {
	if e := (*connError)(nil); errors.As(err, &e) {
		return e.cause
	}
	if e := (*ConnError)(nil); errors.As(err, &e) {
		return e.Cause
	}
	if errors.Is(err, io.EOF) {
		return CauseClosed
	}
	return CauseLost
}

// lossOf marks the losses after which nothing of a stream can have reached an
// application: the peer answered our handshake with an alert.
func (c *conn) lossOf(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "remote error" && !c.settled.Load() {
		return &unprocessedError{err}
	}
	return fmt.Errorf("tunnel connection lost: %w", err)
}

// unprocessedError is a failure before which the peer did nothing for the stream.
type unprocessedError struct{ err error }

func (e *unprocessedError) Error() string { return e.err.Error() }
func (e *unprocessedError) Unwrap() error { return e.err }

// forget takes a stream that is over out of the connection, with RST_STREAM
// unless both sides have ended it or the peer knows.
func (c *conn) forget(s *stream, f failure, outstanding int64) {
	c.mu.Lock()
	if c.streams[s.id] != s {
		c.mu.Unlock()
		return
	}
	delete(c.streams, s.id)
	s.sealed, s.hungry = true, nil
	if f.tell {
		c.resets.add(s.id, outstanding)
		c.control(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, f.code) })
	}
	empty := len(c.streams) == 0
	if empty {
		c.idleSince = time.Now()
	}
	last := empty && c.over()
	c.mu.Unlock()
	if last {
		c.close(errDrained)
	}
}

// over reports whether nothing more can come, once there are no streams: a
// client knows when it drains, a server when the client knows. Called with mu
// held.
func (c *conn) over() bool {
	return c.cause == "" && len(c.streams) == 0 && c.handlers == 0 &&
		(c.drain == drained || c.drain == draining && c.server == nil || c.single)
}

// load is the number of streams.
func (c *conn) load() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

var errDrained = &connError{http2.ErrCodeNo, CauseClosed, "drained"}

// greetPeer collects what each side says first. The connection's window is
// opened at once; streams are limited each by its own.
func (c *conn) greetPeer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		c.collect([]byte(http2.ClientPreface))
	}
	_ = c.framer.WriteSettings(c.ours()...)
	_ = c.framer.WriteWindowUpdate(0, connectionWindow-defaultWindow)
}

// goAway asks for no more streams; the connection ends with the last one.
func (c *conn) goAway() {
	c.mu.Lock()
	if c.drain != serving || c.cause != "" {
		c.mu.Unlock()
		return
	}
	c.drain = draining
	last := uint32(1<<31 - 1)
	if c.server == nil {
		last = 0 // a server opens no streams
	}
	c.control(func(f *http2.Framer) error { return f.WriteGoAway(last, http2.ErrCodeNo, nil) })
	if c.server != nil { // its answer shows that the peer has seen GOAWAY
		c.control(func(f *http2.Framer) error { return f.WritePing(false, drainPing) })
	}
	empty := c.over()
	c.mu.Unlock()
	if empty {
		c.close(errDrained)
	}
}

// onDrainAck is the peer's answer behind GOAWAY: what it opens from now on is
// not served, and it knows.
func (c *conn) onDrainAck() {
	c.mu.Lock()
	if c.drain != draining {
		c.mu.Unlock()
		return
	}
	c.drain = drained
	last := c.lastID
	c.control(func(f *http2.Framer) error { return f.WriteGoAway(last, http2.ErrCodeNo, nil) })
	empty := c.over()
	c.mu.Unlock()
	if empty {
		c.close(errDrained)
	}
}

var (
	pingData  = [8]byte{'t', 'a', 'c', 'i', 't'}
	drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}
)

// past is a deadline that has expired.
var past = time.Unix(1, 0)
