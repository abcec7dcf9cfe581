package hbone

import (
	"io"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// Headroom is how many bytes in front of what is sent a Terminal may overwrite:
// the frame header goes there.
const Headroom = frameHeader

// Terminal is a stream that ends in this process: its bytes are read and
// written here, instead of being relayed to an application's socket. One
// goroutine may read while another one sends.
type Terminal struct {
	s        *stream
	readable chan struct{} // wakes Read
	writable chan struct{} // wakes Send
}

// Terminate gives the stream's bytes to the caller, in the place of Relay. It
// follows Accept, or Answer. A server's stream is reset when the handler
// returns before both sides have ended.
func (s *stream) Terminate() *Terminal {
	t := &Terminal{s: s, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terminal = t
	return t
}

// Read waits without a buffer until there is something to read, then copies at
// most limit bytes behind head bytes left free in a pooled buffer, which the
// caller frees. The peer gets window for what was read. The end of its side is
// io.EOF.
func (t *Terminal) Read(class, head, limit int) (*relay.Buffer, int, error) {
	for {
		if buf, n, err := t.take(class, head, limit); n > 0 || err != nil {
			return buf, n, err
		}
		<-t.readable
	}
}

func (t *Terminal) take(class, head, limit int) (*relay.Buffer, int, error) {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.inbox
	switch {
	case len(b.queue) > 0:
	case s.failure.err != nil:
		return nil, 0, s.failure.err
	case s.remoteEnd:
		return nil, 0, io.EOF
	case s.over:
		return nil, 0, errAborted
	default:
		return nil, 0, nil
	}
	buf := relay.Get(class)
	room := buf.B[head:min(len(buf.B), head+limit)]
	n := 0
	for len(b.queue) > 0 && n < len(room) {
		k := &b.queue[0]
		took := copy(room[n:], k.buf.B[k.r:k.w])
		n += took
		if k.r += took; k.r == k.w {
			s.free(k)
			b.queue = append(b.queue[:0], b.queue[1:]...)
		}
	}
	if len(b.queue) == 0 {
		b.queue = nil
	}
	err := s.delivered(n)
	s.finish()
	if err != nil {
		buf.Free()
		return nil, 0, err
	}
	return buf, n, nil
}

// Send sends b[from:], waiting for the peer's window as long as it takes, and
// may overwrite the Headroom bytes in front of it. Each time it has waited for
// a second it asks stalled, whose error ends it.
func (t *Terminal) Send(b []byte, from int, stalled func() error) error {
	s := t.s
	for from < len(b) {
		took, err := s.c.send(s, b, from, len(b)-from)
		if err != nil {
			if failed := s.Err(); failed != nil {
				return failed
			}
			return err
		}
		if err := s.counts.MoreSent(took); err != nil {
			return err
		}
		from += took
		if took > 0 {
			continue
		}
		if err := t.awaitWindow(stalled); err != nil {
			return err
		}
	}
	return nil
}

func (t *Terminal) awaitWindow(stalled func() error) error {
	s := t.s
	s.c.mu.Lock()
	blocked := s.c.grant(s) == 0 && !s.sealed
	if blocked {
		s.hungry = t
		s.c.starve(s)
	}
	s.c.mu.Unlock()
	if !blocked {
		return nil
	}
	for {
		timer := time.NewTimer(time.Second)
		select {
		case <-t.writable:
			timer.Stop()
			return nil
		case <-timer.C:
			if err := stalled(); err != nil {
				return err
			}
		}
	}
}

// Interrupt makes Send look for window again.
func (t *Terminal) Interrupt() {
	select {
	case t.writable <- struct{}{}:
	default:
	}
}

// wake makes Read look again.
func (t *Terminal) wake() {
	select {
	case t.readable <- struct{}{}:
	default:
	}
}

// Err is what ended the stream out of order; nil while nothing did.
func (t *Terminal) Err() error { return t.s.Err() }

// CloseWrite ends this side in order, behind what was sent.
func (t *Terminal) CloseWrite() error {
	t.s.End()
	return nil
}

// Reset ends the stream at once: the application at the other end sees RST.
func (t *Terminal) Reset() { t.s.Reset() }
