package hbone

import (
	"bytes"
	"runtime"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tacit-mesh/tacit/proxy/h2"
	"github.com/tacit-mesh/tacit/proxy/relay"
)

const (
	frameHeader = 9
	headerTable = h2.TableSize
	record      = 16 << 10 // plaintext of a TLS record at most
)

// writer collects frames of all streams. One goroutine at a time writes: the
// one that finds it free writes its own frame together with everything
// collected meanwhile. Small frames are copied and their stream goes on at
// once; a large one waits for its turn, first come, first served.
type writer struct {
	out     []byte        // frames in order, not yet taken by a write
	outBuf  *relay.Buffer // where out began
	busy    bool          // somebody writes, or is about to
	waiters []*stream     // for their turn; each is woken as the one who writes
	last    bool          // GOAWAY with the reason of the end is collected: nothing follows
	done    bool          // nothing is written any more
	flushed chan struct{} // closed with done

	encoder *hpack.Encoder
	block   bytes.Buffer  // header block under construction
	framer  *http2.Framer // writes control frames into out
}

func (w *writer) init() {
	w.encoder = hpack.NewEncoder(&w.block)
	w.encoder.SetMaxDynamicTableSizeLimit(headerTable)
	w.framer = http2.NewFramer(w, nil)
	w.flushed = make(chan struct{})
}

// Write collects, for the framer.
func (w *writer) Write(p []byte) (int, error) {
	w.collect(p)
	return len(p), nil
}

func (w *writer) collect(p []byte) {
	if w.out == nil {
		w.outBuf = relay.Get(relay.Large)
		w.out = w.outBuf.B[:0]
	}
	w.out = append(w.out, p...)
}

// control collects a control frame and sees to it that it is written, without
// waiting for that: the reading goroutine must not depend on the peer's
// reading. Called with mu held.
func (c *conn) control(write func(*http2.Framer) error) {
	if c.done || c.last {
		return
	}
	if len(c.out) > relay.LargeSize+maxPendingControl {
		go c.close(&ConnError{CauseControlFlood, errUnread})
		return
	}
	_ = write(c.framer) // into memory: no error
	c.wake()
}

// wake sees to it that what is collected is written. Called with mu held.
func (c *conn) wake() {
	if !c.busy && !c.done {
		c.busy = true
		go c.writeRest()
	}
}

// writeRest writes what is collected until there is no more, or somebody else
// is waiting for a turn.
func (c *conn) writeRest() {
	for {
		out, buf := c.takeOut()
		c.write(out, nil)
		if buf != nil {
			buf.Free()
		}
		c.mu.Lock()
		more := c.passTurn()
		c.mu.Unlock()
		if !more {
			return
		}
	}
}

func (c *conn) takeOut() ([]byte, *relay.Buffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, buf := c.out, c.outBuf
	c.out, c.outBuf = nil, nil
	return out, buf
}

// passTurn ends a write: the next waiting stream takes over, or the caller is
// to write the rest (true), or the writer is free. Called with mu held.
func (c *conn) passTurn() (more bool) {
	if len(c.waiters) > 0 {
		s := c.waiters[0]
		c.waiters = append(c.waiters[:0], c.waiters[1:]...)
		s.turn <- struct{}{}
		return false
	}
	if len(c.out) > 0 {
		return true
	}
	c.busy = false
	if c.cause != "" && !c.done {
		c.finishWrites()
	}
	return false
}

// release ends a stream's own write. What others have collected meanwhile
// goes out by a goroutine of its own, so that nobody works for all the others.
func (c *conn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.passTurn() {
		go c.writeRest()
	}
}

// flush writes what is collected, if nobody is about to.
func (c *conn) flush() {
	c.mu.Lock()
	if c.busy || len(c.out) == 0 {
		c.mu.Unlock()
		return
	}
	c.busy = true
	c.mu.Unlock()
	c.writeRest()
}

// send writes b[from:from+n] as DATA of s, as far as both windows allow, and
// returns how many bytes it took. The frame header goes in front of them, into
// b. It returns when b is not needed any more.
func (c *conn) send(s *stream, b []byte, from, n int) (int, error) {
	c.mu.Lock()
	if s.sealed {
		c.mu.Unlock()
		return 0, errSealed
	}
	n = min(n, c.grant(s))
	if n == 0 {
		c.mu.Unlock()
		return 0, nil
	}
	s.window -= int64(n)
	c.window -= int64(n)
	c.updates.Earn()
	frame := b[from-frameHeader : from+n]
	putDataHeader(frame, s.id, n)
	if c.busy && len(frame) <= record && len(c.out)+len(frame) <= relay.LargeSize {
		c.collect(frame)
		c.mu.Unlock()
		return n, nil
	}
	if c.busy {
		if s.turn == nil {
			s.turn = make(chan struct{}, 1)
		}
		c.waiters = append(c.waiters, s)
		c.mu.Unlock()
		<-s.turn
		c.writeOwn(s, frame)
		return n, nil
	}
	c.busy = true
	shared := len(c.streams) > 1 && len(frame) <= record/4
	c.mu.Unlock()
	if shared {
		// Others that are ready to run may have something to send too: one
		// record and one system call for all of it.
		runtime.Gosched()
	}
	c.writeOwn(s, frame)
	return n, nil
}

// writeOwn writes what is collected and then the frame; the caller has the turn.
func (c *conn) writeOwn(s *stream, frame []byte) {
	c.mu.Lock()
	if s.sealed {
		frame = nil
	}
	out, buf := c.out, c.outBuf
	c.out, c.outBuf = nil, nil
	c.mu.Unlock()
	if out != nil && len(out)+len(frame) <= record {
		out = append(out, frame...)
		frame = nil
	}
	c.write(out, frame)
	if buf != nil {
		buf.Free()
	}
	c.release()
}

// write sends both parts with as few system calls as there are 64 KB in them.
// An error ends the connection.
func (c *conn) write(first, second []byte) {
	cork := c.wire != nil && (len(first)+len(second) > record || len(first) > 0 && len(second) > 0)
	if cork {
		c.wire.cork()
	}
	var err error
	for _, p := range [2][]byte{first, second} {
		if len(p) > 0 && err == nil {
			_, err = c.nc.Write(p)
		}
	}
	if cork {
		if e := c.wire.uncork(); err == nil {
			err = e
		}
	}
	if err != nil {
		c.close(err)
	}
}

// farewell tells the peer why the connection ends; whoever writes shuts the
// connection behind it. Called with mu held.
func (c *conn) farewell(e *connError) {
	last := c.lastID
	if c.server == nil {
		last = 0
	}
	c.control(func(f *http2.Framer) error { return f.WriteGoAway(last, e.code, nil) })
	c.last = true
	c.nc.SetWriteDeadline(time.Now().Add(time.Second))
}

// finishWrites runs once, when the connection is closed and nobody writes.
// Called with mu held.
func (c *conn) finishWrites() {
	c.done = true
	if c.outBuf != nil {
		c.outBuf.Free()
		c.out, c.outBuf = nil, nil
	}
	close(c.flushed)
}

func putDataHeader(frame []byte, id uint32, n int) {
	frame[0], frame[1], frame[2] = byte(n>>16), byte(n>>8), byte(n)
	frame[3], frame[4] = byte(http2.FrameData), 0
	frame[5], frame[6], frame[7], frame[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
}
