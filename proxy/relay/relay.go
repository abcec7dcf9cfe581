// Package relay moves bytes between two TCP connections, and offers what any
// such relay is made of: a socket that is driven without blocking and without
// a buffer while it is idle, pooled buffers, and a place for idle sockets that
// are to have no goroutine.
//
// A close is relayed as what it was: FIN as FIN, one direction at a time, and
// RST as RST. What does not belong here: HTTP/2 (proxy/hbone), and whether a
// connection may exist at all (proxy/policy).
package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
)

// End says how a relayed connection ended; it suits a metric label.
type End string

// The ends.
const (
	Finished    End = "finished"      // both sides sent FIN
	ResetByApp  End = "reset_by_app"  // the application at this side reset it, or is unreachable
	ResetByPeer End = "reset_by_peer" // the far side reset it
	Aborted     End = "aborted"       // ended from outside, such as by a policy
	Lost        End = "lost"          // the connection that carried it is gone
)

// Result is the whole of a relayed connection.
type Result struct {
	Sent     int64 // bytes from the application (the first socket) to the far side
	Received int64 // bytes from the far side to the application
	End      End
	Err      error // what ended it; nil when Finished
}

// Counts are the bytes moved so far, readable while the relay runs.
type Counts struct {
	Sent, Received atomic.Int64
	meter          atomic.Pointer[Meter]
}

// Meter is told of bytes that have moved, of either direction, buffer by buffer.
// Its error, if there is one, ends the relay: nothing follows them. It is called
// by several goroutines, with locks held, and must not wait.
type Meter func(n int) error

// Tell has a meter told of all that moves from now on; nil is none.
func (c *Counts) Tell(m Meter) {
	if m == nil {
		c.meter.Store(nil)
		return
	}
	c.meter.Store(&m)
}

// MoreSent counts n bytes that have been sent.
func (c *Counts) MoreSent(n int) error { return c.more(&c.Sent, n) }

// MoreReceived counts n bytes that have been received.
func (c *Counts) MoreReceived(n int) error { return c.more(&c.Received, n) }

func (c *Counts) more(of *atomic.Int64, n int) error {
	if n == 0 { // such as at the end, which is nobody's to hold against it
		return nil
	}
	of.Add(int64(n))
	if m := c.meter.Load(); m != nil {
		return (*m)(n)
	}
	return nil
}

func (c *Counts) metered() bool { return c.meter.Load() != nil }

// Copy relays between app and peer until both directions have ended, either
// side resets the connection, or ctx ends (then both are reset). It owns and
// closes both sockets. counts may be nil.
//
// A reset of a side whose bytes the other side does not take is noticed within
// a second; every other event at once.
func Copy(ctx context.Context, app, peer *net.TCPConn, counts *Counts) Result {
	if counts == nil {
		counts = new(Counts)
	}
	p, err := newPair(app, peer)
	if err != nil {
		app.Close()
		peer.Close()
		return Result{End: Aborted, Err: err}
	}
	stop := context.AfterFunc(ctx, func() { p.fail(Aborted, context.Cause(ctx)) })
	defer stop()

	var other sync.WaitGroup
	other.Go(func() { p.carry(p.peer, p.app, counts, &counts.Received) })
	p.carry(p.app, p.peer, counts, &counts.Sent)
	other.Wait()
	p.app.Close()
	p.peer.Close()

	p.mu.Lock()
	defer p.mu.Unlock()
	return Result{Sent: counts.Sent.Load(), Received: counts.Received.Load(), End: p.end, Err: p.err}
}

// pair is two sockets that live and die together.
type pair struct {
	app, peer *Socket

	mu   sync.Mutex
	open int // directions that have not seen FIN
	end  End // Finished until something else ends it
	err  error
}

func newPair(app, peer *net.TCPConn) (*pair, error) {
	a, err := NewSocket(app)
	if err != nil {
		return nil, err
	}
	b, err := NewSocket(peer)
	if err != nil {
		return nil, err
	}
	return &pair{app: a, peer: b, open: 2, end: Finished}, nil
}

// carry moves one direction to its end, then watches src: a reset may follow
// its FIN as long as the other direction lives.
func (p *pair) carry(src, dst *Socket, counts *Counts, count *atomic.Int64) {
	f := flow{src: src, dst: dst, counts: counts, count: count}
	if err := f.run(); err != nil {
		p.broken(src, err)
		return
	}
	if p.finished() {
		return
	}
	if err := src.WaitReset(); err != nil && !errors.Is(err, ErrInterrupted) {
		p.broken(src, err)
	}
}

// finished counts one direction's FIN and wakes the other when it was the last.
func (p *pair) finished() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	if p.open > 0 {
		return false
	}
	p.app.Interrupt()
	p.peer.Interrupt()
	return true
}

func (p *pair) broken(src *Socket, err error) {
	failed := src
	if w := (*writeError)(nil); errors.As(err, &w) {
		failed = w.socket
	}
	if failed == p.app {
		p.fail(ResetByApp, err)
	} else {
		p.fail(ResetByPeer, err)
	}
}

// fail resets both sockets; the first reason given stays.
func (p *pair) fail(end End, err error) {
	p.mu.Lock()
	if p.end == Finished && p.open > 0 {
		p.end, p.err = end, err
	}
	p.mu.Unlock()
	p.app.Reset()
	p.peer.Reset()
}
