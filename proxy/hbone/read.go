package hbone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/h2"
	"github.com/tacit-mesh/tacit/proxy/relay"
)

// reader is what the reading goroutine alone uses. Its buffer exists only
// while there are bytes in it.
type reader struct {
	in     *relay.Buffer
	r, w   int   // unread bytes are in.B[r:w]
	later  error // met behind bytes that were still good
	parser *http2.Framer

	pending  http2.FrameHeader // of a frame whose payload is incomplete
	waiting  bool              // pending is valid
	body     body              // of the DATA frame under way
	greeting []byte            // of the client's preface, still to come
	assembly h2.Block
	received int64 // of the connection's window, not credited yet
	room     int64 // what the peer may send on the whole connection

	nuisance h2.Allowance // PING, SETTINGS, GOAWAY, PRIORITY, empty and unknown frames
	cancels  h2.Allowance // streams that the peer resets
	settled  atomic.Bool
	ended    atomic.Bool // nothing more is to be read
}

// body is a DATA frame that is being passed on.
type body struct {
	stream *stream // nil: to be dropped
	left   int     // data bytes to come
	pad    int     // padding to come
	padded bool    // the length of the padding is to come
	end    bool
	open   bool // there is one
}

func (r *reader) init(c *conn) {
	r.parser = http2.NewFramer(nil, inbound{r})
	r.parser.SetMaxReadFrameSize(maxFrame)
	r.parser.SetReuseFrames()
	r.assembly.Init(headerLimit(c.server != nil))
	if c.server != nil {
		r.greeting = []byte(http2.ClientPreface)
	}
	r.room = connectionWindow
	r.nuisance = h2.NewAllowance(1000, 100)
	r.cancels = h2.NewAllowance(500, 100)
}

// inbound is the framer's view of the bytes that have been read. The reader
// calls it only when a frame is complete.
type inbound struct{ r *reader }

func (i inbound) Read(p []byte) (int, error) {
	if i.r.r == i.r.w {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, i.r.in.B[i.r.r:i.r.w])
	i.r.r += n
	return n, nil
}

// readFrames handles frames until the connection ends or is closed.
func (c *conn) readFrames() error {
	var failed error
	defer c.dropInput()
	if c.wire == nil {
		for failed == nil {
			failed = c.readSome()
		}
		return failed
	}
	err := c.wire.poll(func() bool {
		for failed == nil {
			failed = c.readSome()
		}
		if failed != errWouldBlock { //nolint:errorlint // our own, never wrapped
			return true
		}
		failed = nil
		c.restInput()
		return false
	})
	if failed != nil {
		return failed
	}
	return err
}

// readSome reads what there is and handles it.
func (c *conn) readSome() error {
	if c.ended.Load() { // also while the peer sends without a pause
		return errEnded
	}
	if err := c.fill(); err != nil {
		return err
	}
	return c.frames()
}

var errEnded = errors.New("connection has ended")

// fill reads at least one TLS record. Bulk data comes in full records: those
// that are there already are taken together, for fewer and larger writes to
// the application.
func (c *conn) fill() error {
	if err := c.later; err != nil {
		c.later = nil
		return err
	}
	if c.in == nil {
		c.in = relay.Get(relay.Large)
		c.r, c.w = 0, 0
	}
	if c.r > 0 {
		c.w = copy(c.in.B, c.in.B[c.r:c.w])
		c.r = 0
	}
	got := 0
	for {
		n, err := c.nc.Read(c.in.B[c.w:])
		c.w += n
		got += n
		if err != nil && got > 0 {
			c.later = err
			return nil
		}
		if err != nil || n < record/2 || len(c.in.B)-c.w < record || c.wire == nil {
			return err
		}
	}
}

// frames handles what has been read and leaves an incomplete control frame.
func (c *conn) frames() error {
	for {
		switch {
		case len(c.greeting) > 0:
			if more, err := c.greet(); !more || err != nil {
				return err
			}
		case c.body.open:
			if more, err := c.moreBody(); !more || err != nil {
				return err
			}
		case c.waiting:
			if c.w-c.r < int(c.pending.Length) {
				return nil
			}
			c.waiting = false
			if err := c.controlFrame(); err != nil {
				return err
			}
		default:
			if c.w-c.r < frameHeader {
				return nil
			}
			if err := c.frameHeader(); err != nil {
				return err
			}
		}
	}
}

func (c *conn) frameHeader() error {
	h, err := c.parser.ReadFrameHeader()
	if err != nil {
		return c.frameError(err)
	}
	if !c.settled.Load() && h.Type != http2.FrameSettings {
		return protocolError("%v before SETTINGS", h.Type)
	}
	if h.Type == http2.FrameData {
		return c.startBody(h)
	}
	if h.Length > maxControlFrame {
		return &connError{http2.ErrCodeFrameSize, CauseFrameSize, fmt.Sprintf("%v frame of %d bytes", h.Type, h.Length)}
	}
	c.pending, c.waiting = h, true
	return nil
}

// startBody checks a DATA frame against the windows and its stream.
func (c *conn) startBody(h http2.FrameHeader) error {
	if h.StreamID == 0 {
		return protocolError("DATA without a stream")
	}
	n := int64(h.Length)
	if n > c.room {
		return &connError{http2.ErrCodeFlowControl, CauseFlowControl, "DATA past the connection's window"}
	}
	c.room -= n
	c.received += n
	if c.received >= connectionCredit {
		c.creditConnection()
	}
	end := h.Flags.Has(http2.FlagDataEndStream)
	if n == 0 && !end && !c.nuisance.Spend() {
		return &connError{http2.ErrCodeEnhanceYourCalm, CauseControlFlood, "empty DATA frames"}
	}
	s, err := c.dataStream(h.StreamID, n)
	if err != nil {
		return err
	}
	if s != nil {
		if code := s.expect(n); code != http2.ErrCodeNo {
			s.violated(code)
			s = nil
		}
	}
	c.body = body{stream: s, left: int(n), padded: h.Flags.Has(http2.FlagDataPadded), end: end, open: true}
	if c.body.padded && n == 0 {
		return protocolError("padded DATA without a length")
	}
	return nil
}

func (c *conn) creditConnection() {
	n := c.received
	c.received = 0
	c.room += n
	c.mu.Lock()
	defer c.mu.Unlock()
	c.control(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, uint32(n)) })
}

// dataStream finds the stream of a DATA frame of n bytes; nil if it is to be
// dropped.
func (c *conn) dataStream(id uint32, n int64) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		return s, nil
	}
	if c.idle(id) {
		return nil, protocolError("DATA on idle stream %d", id)
	}
	if c.resets.allows(id, n) || c.drain == drained {
		return nil, nil
	}
	if !c.nuisance.Spend() {
		return nil, &connError{http2.ErrCodeEnhanceYourCalm, CauseProtocol, "DATA on closed streams"}
	}
	c.control(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeStreamClosed) })
	return nil, nil
}

// idle reports whether nobody has opened the stream yet. Called with mu held.
func (c *conn) idle(id uint32) bool { return id%2 == 0 || id > c.lastID }

// moreBody passes on what has come of a DATA frame; more is false when the
// rest is still to come.
func (c *conn) moreBody() (more bool, err error) {
	b := &c.body
	have := c.w - c.r
	if b.padded && have > 0 {
		b.padded = false
		b.pad = int(c.in.B[c.r])
		c.r++
		b.left -= 1 + b.pad
		if b.left < 0 {
			return false, protocolError("padding longer than its frame")
		}
		if b.stream != nil {
			b.stream.padding(int64(1 + b.pad))
		}
		return true, nil
	}
	if n := min(have, b.left); n > 0 {
		if b.stream != nil {
			b.stream.deliver(c.in.B[c.r : c.r+n])
		}
		c.r += n
		b.left -= n
		have -= n
	}
	if n := min(have, b.pad); b.left == 0 && n > 0 {
		c.r += n
		b.pad -= n
	}
	if b.padded || b.left > 0 || b.pad > 0 {
		return false, nil
	}
	b.open = false
	if b.end && b.stream != nil {
		b.stream.remoteFIN()
	}
	b.stream = nil
	return true, nil
}

// restInput gives the buffer back unless the beginning of a frame is in it.
func (c *conn) restInput() {
	if c.r == c.w {
		c.dropInput()
	}
}

func (c *conn) dropInput() {
	if c.in != nil {
		c.in.Free()
		c.in = nil
		c.r, c.w = 0, 0
	}
}

// greet checks the preface of a client (RFC 9113 section 3.4).
func (c *conn) greet() (more bool, err error) {
	n := min(c.w-c.r, len(c.greeting))
	if !bytes.Equal(c.in.B[c.r:c.r+n], c.greeting[:n]) {
		return false, protocolError("peer does not speak HTTP/2")
	}
	c.r += n
	c.greeting = c.greeting[n:]
	return len(c.greeting) == 0, nil
}
