package hbone

import (
	"net"
	"os"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// carried is a connection whose bytes a stream carries. Of deadlines only that
// they have passed is seen at once; a write finds out within a second.
type carried struct {
	t   *Terminal
	out []byte // used by the one who writes

	mu       sync.Mutex
	closed   bool
	readBy   time.Time
	writeBy  time.Time
	readable *time.Timer // at readBy; nil without
}

func newCarried(t *Terminal) *carried { return &carried{t: t} }

// Conn gives the stream to the caller as a connection, in the place of Relay. It
// follows Answer.
func (s *Stream) Conn() net.Conn { return owner{newCarried(s.Terminate())} }

// owner is a connection whose stream ends with it.
type owner struct{ *carried }

// Close implements net.Conn. A peer that does not end its side either is reset.
func (o owner) Close() error {
	err := o.carried.Close()
	_ = o.t.CloseWrite()
	time.AfterFunc(lastWords, o.t.Reset)
	return err
}

// Read implements net.Conn.
func (c *carried) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if err := c.over(func() time.Time { return c.readBy }); err != nil {
			return 0, err
		}
		buf, n, err := c.t.take(relay.Medium, 0, len(p))
		if err != nil {
			return 0, err
		}
		if n > 0 {
			copy(p, buf.B[:n])
			buf.Free()
			return n, nil
		}
		<-c.t.readable
	}
	return 0, nil
}

// Write implements net.Conn.
func (c *carried) Write(p []byte) (int, error) {
	overdue := func() error { return c.over(func() time.Time { return c.writeBy }) }
	if err := overdue(); err != nil {
		return 0, err
	}
	if c.out == nil {
		c.out = make([]byte, Headroom, Headroom+len(p))
	}
	c.out = append(c.out[:Headroom], p...)
	if err := c.t.Send(c.out, Headroom, overdue); err != nil {
		return 0, err
	}
	return len(p), nil
}

// over is why nothing more is read or written.
func (c *carried) over(by func() time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if at := by(); !at.IsZero() && !time.Now().Before(at) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close wakes who reads or writes. The stream is left to whoever made this.
func (c *carried) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.readable != nil {
		c.readable.Stop()
	}
	c.t.wake()
	c.t.Interrupt()
	return nil
}

// SetDeadline implements net.Conn.
func (c *carried) SetDeadline(at time.Time) error {
	_ = c.SetReadDeadline(at)
	return c.SetWriteDeadline(at)
}

// SetReadDeadline implements net.Conn.
func (c *carried) SetReadDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = at
	if c.readable != nil {
		c.readable.Stop()
	}
	if !at.IsZero() && !c.closed {
		c.readable = time.AfterFunc(time.Until(at), c.t.wake)
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *carried) SetWriteDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = at
	return nil
}

// LocalAddr implements net.Conn.
func (c *carried) LocalAddr() net.Addr { return c.t.s.c.nc.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *carried) RemoteAddr() net.Addr { return c.t.s.c.nc.RemoteAddr() }
