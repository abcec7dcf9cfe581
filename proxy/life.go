package proxy

import "context"

// A connection that is being connected has a context, for all that it waits for.
// One that a stream carries waits for nothing else: the stream is all that has to
// be ended, so the context is given up, which would be a quarter of what an idle
// connection has in use.

// ender ends a connection: what it waits for, or the stream that carries it.
type ender interface {
	// Abort ends it for a reason, of which only the first counts.
	Abort(cause error)
}

// waiting is an ender of what a connection waits for.
type waiting struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Abort implements ender.
func (w *waiting) Abort(cause error) { w.cancel(cause) }

// wait gives the connection a context: until a stream carries it, and again if
// that is refused.
func (c *Connection) wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := new(waiting)
	w.ctx, w.cancel = context.WithCancelCause(c.pod.ctx)
	if c.cause != nil {
		w.cancel(c.cause)
	}
	c.ender = w
}

// context is what the connection waits with. It ends with the pod, as soon as the
// connection is no longer allowed, and with the connection: decisions about its
// requests may outlast it, and are to ask nobody then.
func (c *Connection) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch by := c.ender.(type) {
	case *waiting:
		return by.ctx
	case nil:
		ended, cancel := context.WithCancelCause(c.pod.ctx)
		cancel(c.cause)
		return ended
	default:
		return c.pod.ctx
	}
}

// carriedBy leaves the connection to a stream, which is ended in the place of the
// context.
func (c *Connection) carriedBy(stream ender) {
	c.mu.Lock()
	w, cause := c.ender.(*waiting), c.cause
	c.ender = stream
	c.mu.Unlock()
	w.cancel(nil)
	if cause == nil {
		cause = context.Cause(c.pod.ctx) // looked at last: from now on endCarried finds the stream
	}
	if cause != nil {
		stream.Abort(cause)
	}
}

// cancel ends the connection for a reason, of which only the first counts. It does
// not wait, and may be called with the stream's locks held.
func (c *Connection) cancel(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	c.cause = cause
	switch by := c.ender.(type) {
	case *waiting:
		by.Abort(cause)
	case nil:
	default:
		go by.Abort(cause)
	}
}

// endCause is why the connection was ended from here; nil if it was not.
func (c *Connection) endCause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.ender.(*waiting); ok && c.cause == nil {
		return context.Cause(w.ctx)
	}
	return c.cause
}

// forgetEnder is for a connection that has ended: what is remembered of it is to
// hold neither a stream nor a context.
func (c *Connection) forgetEnder() {
	c.mu.Lock()
	by := c.ender
	c.ender = nil
	c.mu.Unlock()
	if w, ok := by.(*waiting); ok {
		w.cancel(nil)
	}
}

// endCarried ends the connections that streams carry of all pods that are gone.
func (p *Proxy) endCarried() {
	gone := p.conns.Those(func(c *Connection) bool { return c.pod.ctx.Err() != nil })
	for _, c := range gone {
		c.cancel(context.Cause(c.pod.ctx))
	}
}
