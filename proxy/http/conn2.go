package http

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

const (
	// maxStreams is how many a client may have open at a time.
	maxStreams = 1000
	// maxQueued is how many bytes of bodies may wait for decisions; the
	// client's next bytes wait beyond that.
	maxQueued = 256 << 10
	// maxLastStream is the id with which a GOAWAY is announced.
	maxLastStream = 1<<31 - 1
)

// conn2 is a connection that carries HTTP/2. Each stream of the client that is
// allowed is one of the application's, under a number of its own there, since
// those that are refused leave gaps. What one side grants the other may send:
// nothing of a stream is held here, except while its decision is waited for.
type conn2 struct {
	*conn
	toClient, toApp sender2
	// Frames without content that each side may send for the other's DATA.
	clientPaid, appPaid atomic.Int64

	mu       sync.Mutex // guards what follows; taken before a sender's
	byClient map[uint32]*stream2
	byApp    map[uint32]*stream2
	lastID   uint32 // highest of the client
	nextApp  uint32
	queued   int
	greeted  bool // the client has acknowledged our own SETTINGS
	ended    bool
	cancels  h2.Allowance // streams that the client resets unanswered
}

func newConn2(c *conn) *conn2 {
	h := &conn2{conn: c, nextApp: 1, byClient: map[uint32]*stream2{}, byApp: map[uint32]*stream2{}}
	h.toClient.init(c.client.side, c.app.side.Err)
	h.toApp.init(c.app.side, c.client.side.Err)
	h.cancels = h2.NewAllowance(1000, 200)
	return h
}

// serveClient passes on the client's frames until its end.
func (c *conn2) serveClient() error {
	c.client.skip(len(http2.ClientPreface))
	c.toApp.mu.Lock()
	_, _ = c.toApp.Write([]byte(http2.ClientPreface))
	c.toApp.mu.Unlock()
	// Refusals may go out before the application has said anything, but
	// nothing goes out before SETTINGS.
	c.toClient.frame(func(w *http2.Framer) error {
		return w.WriteSettings(
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: maxStreams},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderList})
	})
	var f frames2
	f.init(&c.client, &c.clientPaid, &c.appPaid)
	err := f.run(fromClient{c})
	if flushed := c.toApp.flush(); flushed != nil && err == io.EOF { //nolint:errorlint // returned as it is
		err = flushed
	}
	var bad *h2Error
	if errors.As(err, &bad) {
		return c.farewell(bad)
	}
	return err
}

// farewell tells a client what it did wrong and ends the connection.
func (c *conn2) farewell(bad *h2Error) error {
	c.gate.Malformed(&MalformedError{Status: 400, Text: bad.Error()})
	c.left.Store(true)
	c.mu.Lock()
	last := c.lastID
	c.mu.Unlock()
	c.toClient.frame(func(f *http2.Framer) error { return f.WriteGoAway(last, bad.code, nil) })
	timer := time.AfterFunc(lingerTime, c.client.side.Reset)
	_ = c.toClient.flush()
	timer.Stop()
	c.app.side.Reset() // what it was sent of the streams is not all
	c.endAll(bad)
	c.linger()
	return nil
}

// serveApp passes on the application's frames until its end.
func (c *conn2) serveApp() error {
	var f frames2
	f.init(&c.app, &c.appPaid, &c.clientPaid)
	err := f.run(fromApp{c})
	if flushed := c.toClient.flush(); flushed != nil && err == io.EOF { //nolint:errorlint // returned as it is
		err = flushed
	}
	c.endAll(err)
	return err
}

// endAll tells the gate that no stream goes on.
func (c *conn2) endAll(err error) {
	c.mu.Lock()
	c.ended = true
	streams := c.byClient
	c.byClient, c.byApp = map[uint32]*stream2{}, map[uint32]*stream2{}
	c.mu.Unlock()
	for _, s := range streams {
		s.over(err)
	}
}

// fromClient handles the client's frames.
type fromClient struct{ *conn2 }

func (c fromClient) idle() error {
	if err := c.toClient.wake(); err != nil {
		return err
	}
	return c.toApp.flush()
}

// onFrame passes on what is no stream's, and what concerns streams' windows
// and ends.
func (c fromClient) onFrame(frame http2.Frame) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		return c.passSettings(f, &c.toApp, &c.toClient, true)
	case *http2.PingFrame:
		c.toApp.frame(func(w *http2.Framer) error { return w.WritePing(f.IsAck(), f.Data) })
	case *http2.GoAwayFrame: // the client takes no pushed streams in any case
		c.toApp.frame(func(w *http2.Framer) error { return w.WriteGoAway(0, f.ErrCode, nil) })
	case *http2.WindowUpdateFrame:
		return c.onWindow(f)
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	}
	return nil // PRIORITY and what is unknown end here
}

func (c fromClient) onWindow(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := uint32(0)
	if f.StreamID != 0 {
		s := c.byClient[f.StreamID]
		switch {
		case s == nil && (f.StreamID > c.lastID || f.StreamID%2 == 0):
			return protocolError("WINDOW_UPDATE on idle stream %d", f.StreamID)
		case s == nil:
			return nil
		case s.app == 0: // not forwarded yet
			s.credit = min(s.credit+int64(f.Increment), maxLastStream)
			return nil
		}
		id = s.app
	}
	c.toApp.frame(func(w *http2.Framer) error { return w.WriteWindowUpdate(id, f.Increment) })
	return nil
}

// onReset passes on that the client gives a stream up. One that was not even
// answered costs the client nothing (CVE-2023-44487).
func (c fromClient) onReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	s := c.byClient[f.StreamID]
	idle := f.StreamID > c.lastID || f.StreamID%2 == 0
	unanswered := s == nil || s.status == 0
	if s != nil {
		c.forget(s)
		if s.app != 0 {
			c.toApp.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.app, f.ErrCode) })
		}
	}
	spent := unanswered && !c.cancels.Spend()
	c.mu.Unlock()
	if s != nil {
		s.over(errReset)
	}
	switch {
	case idle:
		return protocolError("RST_STREAM on idle stream %d", f.StreamID)
	case spent:
		return &h2Error{http2.ErrCodeEnhanceYourCalm, "streams opened and reset"}
	}
	return nil
}

var errReset = errors.New("the stream was reset")

// onData passes on a part of a request's body.
func (c fromClient) onData(id uint32, b []byte, from int, end, padded bool) error {
	c.mu.Lock()
	s := c.byClient[id]
	size := len(b) - from
	switch {
	case s == nil && (id > c.lastID || id%2 == 0):
		c.mu.Unlock()
		return protocolError("DATA on idle stream %d", id)
	case s == nil: // refused, reset, or over
		c.mu.Unlock()
		c.refund(&c.toClient, size)
		return nil
	case s.clientEnd:
		c.mu.Unlock()
		return c.violate(s, http2.ErrCodeStreamClosed, size)
	}
	if !s.count(b, from, end, padded) {
		c.mu.Unlock()
		return c.violate(s, http2.ErrCodeProtocol, size)
	}
	s.clientEnd = end
	if s.app == 0 {
		return c.queue(s, b[from:], end, padded)
	}
	over := s.clientEnd && s.appEnd
	if over {
		c.forget(s)
		s.sealed.Store(false)
	}
	app := s.app
	c.mu.Unlock()
	s.Sent.Add(int64(size))
	putData(b, from, app, end, padded)
	sent, err := c.toApp.data(b, from-frameHeader, &s.sealed)
	if over {
		s.over(nil)
	}
	if !sent && err == nil {
		c.refund(&c.toClient, size)
	}
	return err
}

// queue keeps a part of a body until its stream is decided on. Called with mu
// held, which it gives up.
func (c *conn2) queue(s *stream2, data []byte, end, padded bool) error {
	b := make([]byte, frameHeader, frameHeader+len(data))
	s.queue = append(s.queue, queued{append(b, data...), end, padded})
	c.queued += len(b) + len(data)
	full := c.queued > maxQueued
	c.mu.Unlock()
	if full {
		if err := c.toApp.flush(); err != nil {
			return err
		}
		<-s.decided
	}
	return nil
}

// refund gives a side back what its bytes took of the connection's window,
// where the other side has not received them.
func (c *conn2) refund(to *sender2, n int) {
	if n > 0 {
		to.frame(func(w *http2.Framer) error { return w.WriteWindowUpdate(0, uint32(n)) })
	}
}

// violate resets a stream of which the client broke the rules.
func (c *conn2) violate(s *stream2, code http2.ErrCode, unsent int) error {
	c.reset(s, code, http2.ErrCodeProtocol)
	c.refund(&c.toClient, unsent)
	s.over(protocolError("the client broke the stream: %v", code))
	return nil
}

// reset ends a stream at both sides, unless it is over.
func (c *conn2) reset(s *stream2, client, app http2.ErrCode) (live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byClient[s.id] != s {
		return false
	}
	c.forget(s)
	c.toClient.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, client) })
	if s.app != 0 {
		c.toApp.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.app, app) })
	}
	return true
}

// abort is Live.Abort: gRPC takes INADEQUATE_SECURITY for a denied permission.
func (c *conn2) abort(s *stream2) {
	if c.reset(s, http2.ErrCodeInadequateSecurity, http2.ErrCodeCancel) {
		_ = c.toClient.wake()
		_ = c.toApp.wake()
		s.over(errRevoked)
	}
}

// forget takes a stream out of the tables. Called with mu held.
func (c *conn2) forget(s *stream2) {
	s.sealed.Store(true)
	delete(c.byClient, s.id)
	delete(c.byApp, s.app)
	for _, q := range s.queue {
		c.queued -= len(q.frame)
	}
	s.queue = nil
}

// passSettings passes on what concerns the ends. Compression is each hop's
// own, nothing is pushed, extended CONNECT is not offered, and limits are the
// smaller of the end's and ours.
func (c *conn2) passSettings(f *http2.SettingsFrame, to, back *sender2, fromClient bool) error {
	if f.IsAck() {
		c.mu.Lock()
		ours := fromClient && !c.greeted
		c.greeted = c.greeted || fromClient
		c.mu.Unlock()
		if !ours {
			to.frame((*http2.Framer).WriteSettingsAck)
		}
		return nil
	}
	var out []http2.Setting
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return protocolError("invalid setting %v", s)
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			back.mu.Lock()
			back.encoder.SetMaxDynamicTableSize(min(s.Val, h2.TableSize))
			back.mu.Unlock()
			return nil
		case http2.SettingMaxConcurrentStreams:
			if fromClient {
				return nil
			}
			s.Val = min(s.Val, maxStreams)
		case http2.SettingMaxFrameSize:
			s.Val = min(s.Val, maxFrame)
		case http2.SettingMaxHeaderListSize:
			s.Val = min(s.Val, maxHeaderList)
		case http2.SettingInitialWindowSize:
		default:
			return nil
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		return err
	}
	if fromClient {
		out = append(out, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	}
	to.frame(func(w *http2.Framer) error { return w.WriteSettings(out...) })
	return nil
}

var (
	_ handler2 = fromClient{}
	_ handler2 = fromApp{}
)
