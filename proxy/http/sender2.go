package http

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tacit-mesh/tacit/proxy/h2"
	"github.com/tacit-mesh/tacit/proxy/relay"
)

const (
	frameHeader = 9
	// headerFragment is what every peer takes in one frame.
	headerFragment = 16 << 10
	// eager is how much is collected before it is sent.
	eager = 32 << 10
	// along is the largest frame of DATA that is collected: copying it costs
	// less than a record and a call of its own. A message of gRPC then goes out
	// as one, with the headers in front and behind.
	along = 8 << 10
	// maxUnsent is how much a side may leave unread of what concerns it alone.
	maxUnsent = 1 << 20
)

var errUnread = errors.New("a side does not read what it causes")

// sender2 collects frames for one side. Whoever reads the other side sends them
// together before it waits; the rest is sent by a goroutine that lives only as
// long.
type sender2 struct {
	side    Side
	stalled func() error

	writing sync.Mutex // held while bytes are sent; taken before mu

	mu      sync.Mutex // guards what follows; nobody waits with it
	out     []byte     // behind headRoom
	bodies  int        // of these, bytes that were held and that the side has given window for
	buf     *relay.Buffer
	busy    bool // somebody is about to send
	encoder *hpack.Encoder
	block   bytes.Buffer
	framer  *http2.Framer
	failed  error
}

func (s *sender2) init(side Side, stalled func() error) {
	s.side, s.stalled = side, stalled
	s.encoder = hpack.NewEncoder(&s.block)
	s.encoder.SetMaxDynamicTableSizeLimit(h2.TableSize)
	s.framer = http2.NewFramer(s, nil)
}

// Write collects, for the framer and the preface. mu is held.
func (s *sender2) Write(p []byte) (int, error) {
	if s.out == nil {
		s.buf = relay.Get(relay.Large)
		s.out = s.buf.B[:headRoom]
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

// frame collects what write writes.
func (s *sender2) frame(write func(*http2.Framer) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		_ = write(s.framer) // into memory: no error
	}
}

// held collects a part of a body that was held.
func (s *sender2) held(id uint32, end bool, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		_ = s.framer.WriteData(id, end, p) // into memory: no error
		s.bodies += frameHeader + len(p)
	}
}

// headers collects a header list.
func (s *sender2) headers(id uint32, fields []hpack.HeaderField, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return
	}
	s.block.Reset()
	for _, f := range fields {
		_ = s.encoder.WriteField(f)
	}
	p := s.block.Bytes()
	part := p[:min(len(p), headerFragment)]
	p = p[len(part):]
	_ = s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndStream: end, EndHeaders: len(p) == 0})
	for len(p) > 0 {
		part = p[:min(len(p), headerFragment)]
		p = p[len(part):]
		_ = s.framer.WriteContinuation(id, len(p) == 0, part)
	}
}

func (s *sender2) take() ([]byte, *relay.Buffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, buf := s.out, s.buf
	s.out, s.buf, s.bodies = nil, nil, 0
	return out, buf
}

// flush sends what is collected.
func (s *sender2) flush() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.sendCollected()
}

// sendCollected is called with writing held.
func (s *sender2) sendCollected() error {
	out, buf := s.take()
	if buf == nil {
		return s.err()
	}
	err := s.side.Send(out, headRoom, s.stalled)
	buf.Free()
	if err != nil {
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
	}
	return err
}

func (s *sender2) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// data sends b[from:], which is a whole frame, behind what is collected,
// unless the stream was sealed before.
func (s *sender2) data(b []byte, from int, sealed *atomic.Bool) (sent bool, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if len(b)-from <= along {
		s.mu.Lock()
		if !sealed.Load() {
			_, _ = s.Write(b[from:])
			sent = true
		}
		more := len(s.out) > eager
		s.mu.Unlock()
		if more {
			err = s.sendCollected()
		}
		return sent, err
	}
	if err := s.sendCollected(); err != nil {
		return false, err
	}
	if sealed.Load() {
		return false, nil
	}
	return true, s.side.Send(b, from, s.stalled)
}

// wake has what is collected sent without waiting for it.
func (s *sender2) wake() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out)-s.bodies > maxUnsent {
		return errUnread
	}
	if s.busy || s.out == nil || s.failed != nil {
		return nil
	}
	s.busy = true
	go func() {
		for more := true; more; {
			_ = s.flush() // whoever reads this side learns of it
			s.mu.Lock()
			more = s.out != nil && s.failed == nil
			s.busy = more
			s.mu.Unlock()
		}
	}()
	return nil
}
