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
	// maxLent is how many bytes of bodies a connection may leave with us, the
	// ones included whose decisions want to see them. More is there only where
	// the application does not read.
	maxLent = 16 << 20
	// startWindow is the default of the protocol, and undecided what a client
	// may send of a body that is not decided on, once it has heard that.
	startWindow = 65535
	undecided   = 16 << 10
	// maxLastStream is the id with which a GOAWAY is announced.
	maxLastStream = 1<<31 - 1
)

// conn2 is a connection that carries HTTP/2. Each stream of the client that is
// allowed is one of the application's, under a number of its own there, since
// those that are refused leave gaps. What one side grants the other may send:
// nothing of a stream is held here, except around its decision; see held2.go.
type conn2 struct {
	*conn
	toClient, toApp sender2
	opened          chan struct{} // closed when the client is told our own SETTINGS, which the application's follow
	// Frames without content that each side may send for the other's DATA.
	clientPaid, appPaid atomic.Int64

	mu       sync.Mutex // guards what follows; taken before a sender's
	byClient map[uint32]*stream2
	byApp    map[uint32]*stream2
	lastID   uint32 // highest of the client
	nextApp  uint32
	flow     account
	credit   int64             // what the client may send
	initial  int64             // the application's window of a new stream
	holding  map[*stream2]bool // decided on, with bytes that the application has no window for
	lent     int               // bytes of bodies that wait for decisions or, decided on, for the application
	greeted  bool              // the client has acknowledged our own SETTINGS
	cancels  h2.Allowance      // streams that the client resets unanswered
}

func newConn2(c *conn) *conn2 {
	h := &conn2{
		conn: c, opened: make(chan struct{}), nextApp: 1, byClient: map[uint32]*stream2{}, byApp: map[uint32]*stream2{},
		flow: account{window: startWindow}, credit: startWindow, initial: startWindow, holding: map[*stream2]bool{},
	}
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
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: undecided},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderList})
	})
	close(c.opened)
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
	<-c.opened
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
	streams := c.byClient
	c.byClient, c.byApp = map[uint32]*stream2{}, map[uint32]*stream2{}
	for _, s := range streams {
		c.drop(s)
	}
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
			s.allowed = min(s.allowed+int64(f.Increment), maxLastStream)
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

var (
	errReset    = errors.New("the stream was reset")
	errSlowBody = errors.New("the body that a decision waits for did not come")
)

// ErrNoRoom is why a request whose body would have to be held is refused.
var ErrNoRoom = errors.New("too many bodies of requests from this address, or to this pod, wait for decisions")

// NoRoom is what it is answered with. In gRPC that is not UNAVAILABLE, which
// clients repeat at once.
func NoRoom() *Refusal {
	return &Refusal{Status: 503, GRPC: grpcExhausted, Message: ErrNoRoom.Error()}
}

// onData passes on a part of a request's body.
func (c fromClient) onData(id uint32, b []byte, from int, end, padded bool) error {
	c.mu.Lock()
	s := c.byClient[id]
	size := len(b) - from
	if c.credit -= int64(size); c.credit < 0 {
		c.mu.Unlock()
		return &h2Error{http2.ErrCodeFlowControl, "more DATA than the connection's window"}
	}
	switch {
	case s == nil && (id > c.lastID || id%2 == 0):
		c.mu.Unlock()
		return protocolError("DATA on idle stream %d", id)
	case s == nil: // refused, reset, or over
		c.grant(size)
		c.mu.Unlock()
		return nil
	case s.clientEnd:
		return c.violate(s, http2.ErrCodeStreamClosed, size)
	}
	if s.credit -= int64(size); s.credit < 0 && size > 0 {
		return c.violate(s, http2.ErrCodeFlowControl, size)
	}
	if !s.count(b, from, end, padded) {
		return c.violate(s, http2.ErrCodeProtocol, size)
	}
	s.clientEnd = end
	if s.app != 0 {
		s.settle()
	}
	if s.app == 0 || len(s.held) > 0 || !s.fits(size) {
		return c.hold(s, b[from:], padded)
	}
	s.sentEnd = end
	over := end && s.appEnd
	if over {
		c.forget(s)
		s.sealed.Store(false)
	}
	s.flow.window -= int64(size)
	c.flow.window -= int64(size)
	app := s.app
	c.mu.Unlock()
	s.Sent.Add(int64(size))
	putData(b, from, app, end, padded)
	sent, err := c.toApp.data(b, from-frameHeader, &s.sealed)
	if over {
		s.over(nil)
	}
	if !sent && err == nil {
		c.mu.Lock()
		c.flow.window += int64(size)
		c.grant(size)
		c.mu.Unlock()
	}
	return err
}

// refund gives the application back what its bytes took of the connection's
// window, where the client has not received them.
func (c *conn2) refund(n int) {
	if n > 0 {
		c.toApp.frame(func(w *http2.Framer) error { return w.WriteWindowUpdate(0, uint32(n)) })
	}
}

// violate resets a stream of which the client broke the rules. Called with mu
// held, which it gives up.
func (c *conn2) violate(s *stream2, code http2.ErrCode, unsent int) error {
	c.grant(unsent)
	c.mu.Unlock()
	c.reset(s, code, http2.ErrCodeProtocol)
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
	c.drop(s)
}

var (
	_ handler2 = fromClient{}
	_ handler2 = fromApp{}
)
