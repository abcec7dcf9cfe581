package hbone

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

const maxWindow = 1<<31 - 1

var (
	errUnread = errors.New("peer does not read")
	errSealed = errors.New("stream is closed for sending")
)

// controlFrame reads and handles a complete frame that is not DATA.
func (c *conn) controlFrame() error {
	frame, err := c.parser.ReadFrameForHeader(c.pending)
	if err != nil {
		return c.frameError(err)
	}
	switch f := frame.(type) {
	case *http2.HeadersFrame:
		return c.onBlock(f.StreamID, f.HeaderBlockFragment(), f.HeadersEnded(), f.StreamEnded(), true)
	case *http2.ContinuationFrame:
		return c.onBlock(f.StreamID, f.HeaderBlockFragment(), f.HeadersEnded(), false, false)
	case *http2.WindowUpdateFrame:
		return c.onWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	case *http2.PushPromiseFrame:
		return protocolError("PUSH_PROMISE")
	}
	if !c.nuisance.Spend() {
		return &connError{http2.ErrCodeEnhanceYourCalm, CauseControlFlood, "flood of " + frame.Header().Type.String()}
	}
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		return c.onSettings(f)
	case *http2.PingFrame:
		return c.onPing(f)
	case *http2.GoAwayFrame:
		return c.onGoAway(f)
	}
	return nil // PRIORITY and what is unknown
}

// frameError translates what the framer found wrong: some errors concern one
// stream, the others the connection.
func (c *conn) frameError(err error) error {
	if e := (http2.StreamError{}); errors.As(err, &e) {
		return c.violation(e.StreamID, e.Code)
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return &connError{http2.ErrCodeFrameSize, CauseFrameSize, "oversized frame"}
	}
	if e := http2.ConnectionError(0); errors.As(err, &e) {
		cause := CauseProtocol
		if e == http2.ConnectionError(http2.ErrCodeFrameSize) {
			cause = CauseFrameSize
		}
		return &connError{http2.ErrCode(e), cause, fmt.Sprintf("malformed frame: %v", c.parser.ErrorDetail())}
	}
	return protocolError("malformed frame: %v", err)
}

// violation resets a stream that the peer broke, if it exists.
func (c *conn) violation(id uint32, code http2.ErrCode) error {
	c.mu.Lock()
	s, idle := c.streams[id], c.idle(id)
	c.mu.Unlock()
	switch {
	case s != nil:
		s.violated(code)
	case idle:
		return &connError{code, CauseProtocol, fmt.Sprintf("malformed frame on idle stream %d", id)}
	case !c.nuisance.Spend():
		return &connError{http2.ErrCodeEnhanceYourCalm, CauseProtocol, "malformed frames"}
	}
	return nil
}

func (c *conn) onPing(f *http2.PingFrame) error {
	if !f.IsAck() {
		data := f.Data
		c.mu.Lock()
		defer c.mu.Unlock()
		c.control(func(w *http2.Framer) error { return w.WritePing(true, data) })
		return nil
	}
	if f.Data == drainPing {
		c.onDrainAck()
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pingSent.IsZero() && f.Data == pingData {
		c.rtt = time.Since(c.pingSent)
		c.pingSent = time.Time{}
	}
	return nil
}

func (c *conn) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.updates.Spend() {
		return &connError{http2.ErrCodeEnhanceYourCalm, CauseControlFlood, "flood of WINDOW_UPDATE"}
	}
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return &connError{http2.ErrCodeFlowControl, CauseFlowControl, "WINDOW_UPDATE takes the connection's window past 2^31-1"}
		}
		starved := c.starved
		c.starved = nil
		for _, s := range starved {
			s.starved = false
			c.feed(s)
		}
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return protocolError("WINDOW_UPDATE on idle stream %d", f.StreamID)
		}
		return nil
	}
	if s.window += int64(f.Increment); s.window > maxWindow {
		s.window = 0
		go s.violated(http2.ErrCodeFlowControl) // takes the locks in their order
		return nil
	}
	c.feed(s)
	return nil
}

// onReset ends a stream that the peer gave up. One that was not even answered
// costs the peer nothing, so there is a limit to them (CVE-2023-44487).
func (c *conn) onReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	s, idle := c.streams[f.StreamID], c.idle(f.StreamID)
	c.mu.Unlock()
	if idle {
		return protocolError("RST_STREAM on idle stream %d", f.StreamID)
	}
	if (s == nil || !s.answered.Load()) && c.server != nil && !c.cancels.Spend() {
		return &connError{http2.ErrCodeEnhanceYourCalm, CauseRapidReset, "streams opened and reset"}
	}
	if s != nil {
		s.resetByPeer(f.ErrCode)
	}
	return nil
}

// onGoAway ends the streams that the peer has not processed; the others go on.
func (c *conn) onGoAway(f *http2.GoAwayFrame) error {
	if c.server != nil {
		c.goAway() // a client that leaves: what it has opened is finished
		return nil
	}
	c.mu.Lock()
	if c.drain == serving {
		c.drain = draining
	}
	var lost []*stream
	for id, s := range c.streams {
		if id > f.LastStreamID {
			lost = append(lost, s)
		}
	}
	empty := len(c.streams) == 0
	c.mu.Unlock()
	for _, s := range lost {
		s.fail(failure{end: relay.Lost, err: &unprocessedError{errDraining}})
	}
	if empty {
		return &connError{http2.ErrCodeNo, CauseClosed, "peer is draining"}
	}
	return nil
}
