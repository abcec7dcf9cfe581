package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// ServerConfig is what one connection is served with.
type ServerConfig struct {
	// NotAfter is when the server's own certificate ends; the client's is
	// known from the handshake. After either no new stream is served.
	NotAfter time.Time
	// Grace is how long streams may go on after that; 0 is without end.
	Grace time.Duration
	// Drain, when it ends, asks the client for no more streams; Serve returns
	// with the last one. nil: never.
	Drain context.Context
	// Budget caps receive memory, shared by the pod's connections. nil:
	// 64 MiB for this connection.
	Budget *Budget
	// Parking takes idle streams, which then have no goroutine. nil: none does.
	Parking *relay.Parking

	timing timing
}

// Handler serves one stream: it calls Refuse, or Accept and then Relay or
// waits for Done. Its context ends when the stream is reset or lost, and when
// it is relayed. A stream that is not over when it returns is reset, unless it
// is relayed.
type Handler func(context.Context, *ServerStream)

// Serve handles the streams of a connection, each in a goroutine, until it
// ends, and returns why: a *ConnError. When ctx ends, all streams are reset. A
// *tls.Conn must have finished its handshake and be made on a Wire to be
// served without a buffer while it is idle; it needs
// tls.Config.DynamicRecordSizingDisabled for full records.
func Serve(ctx context.Context, nc net.Conn, config ServerConfig, handler Handler) error {
	srv := &server{ctx: ctx, handler: handler}
	notAfter := config.NotAfter
	if t, ok := nc.(*tls.Conn); ok {
		notAfter = earlier(notAfter, peerEnd(t.ConnectionState()))
	}
	c := newConn(nc, srv, config.Budget, certificateEnd{notAfter, config.Grace}, config.timing)
	c.parking = config.Parking
	defer context.AfterFunc(ctx, func() { c.close(&ConnError{CauseCanceled, context.Cause(ctx)}) })()
	if config.Drain != nil {
		defer context.AfterFunc(config.Drain, c.goAway)()
	}
	c.greetPeer()
	c.flush()
	err := c.run()
	srv.running.Wait()
	return err
}

// server is what a serving connection has beyond the common.
type server struct {
	ctx     context.Context
	handler Handler
	running sync.WaitGroup
}

// ServerStream is a stream that a client asks for.
type ServerStream struct {
	stream
	headers []Header
	taken   bool // Accept or Refuse was called
	relayed bool // Relay was called, which ends what the handler leaves
}

// Authority is what the client asks for: not empty, otherwise not checked.
func (s *ServerStream) Authority() string { return value(s.headers, ":authority") }

// Header is the first value of a header, or "". Names are in lower case; all
// of them together are at most 64 KiB.
func (s *ServerStream) Header(name string) string { return value(s.headers, name) }

// open handles the HEADERS of a new stream. Handlers that still run count as
// streams, also when the client has reset theirs.
func (srv *server) open(c *conn, id uint32, m message) error {
	if id%2 == 0 {
		return protocolError("client opened stream %d", id)
	}
	c.mu.Lock()
	c.lastID = id
	if c.cause != "" || c.drain == drained {
		c.mu.Unlock()
		return nil
	}
	expired := !c.notAfter.IsZero() && !time.Now().Before(c.notAfter)
	if expired || c.handlers >= serverStreams {
		c.resets.add(id, firstWindow)
		c.control(func(w *http2.Framer) error { return w.WriteRSTStream(id, http2.ErrCodeRefusedStream) })
		c.mu.Unlock()
		if expired {
			c.goAway()
		} else if !c.cancels.Spend() {
			return &connError{http2.ErrCodeEnhanceYourCalm, CauseRapidReset, "streams past MAX_CONCURRENT_STREAMS"}
		}
		return nil
	}
	s := &ServerStream{headers: m.fields}
	s.stream.init(c, id)
	ctx, cancel := context.WithCancel(srv.ctx)
	s.cancel = cancel
	c.handlers++
	c.mu.Unlock()
	if m.end {
		s.remoteFIN()
	}
	status := invalid(m)
	srv.running.Add(1)
	go srv.serve(ctx, s, status)
	return nil
}

// serve has the request handled, or refused with a status that is not 0.
func (srv *server) serve(ctx context.Context, s *ServerStream, status int) {
	if status != 0 {
		s.Refuse(status)
	} else {
		srv.handler(ctx, s)
	}
	if !s.relayed {
		s.served()
	}
}

// served ends a stream with its handler, or its relay.
func (s *ServerStream) served() {
	s.Reset()
	s.endHandler()
	s.c.handlerDone()
	s.c.server.running.Done()
}

// invalid returns the status for a request that no handler needs to see, or 0. Plain
// CONNECT has a method and an authority and no other pseudo header (RFC 9113
// section 8.5); the extended form of RFC 8441 is not offered.
func invalid(m message) int {
	switch {
	case m.tooLarge:
		return 431
	case m.malformed != "", value(m.fields, ":method") != "CONNECT", value(m.fields, ":authority") == "":
		return 400
	}
	for i, f := range m.fields {
		if f.Name[0] != ':' {
			break
		}
		if i > 1 || f.Name != ":method" && f.Name != ":authority" {
			return 400
		}
	}
	return 0
}

// Working tells the client that the answer takes longer.
func (s *ServerStream) Working() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken || s.over {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.sealed {
		s.c.writeHeaders(s.id, []Header{{":status", "102"}}, false)
		s.c.wake()
	}
}

// Accept answers 200. Until then the client may send no more than 64 KB.
func (s *ServerStream) Accept(headers ...Header) {
	s.answerWith(200, headers, false)
}

// Refuse answers with another status and ends the stream.
func (s *ServerStream) Refuse(status int, headers ...Header) {
	s.answerWith(status, headers, true)
	s.fail(failure{end: relay.Aborted, err: errStatus, code: http2.ErrCodeNo, tell: true})
}

func (s *ServerStream) answerWith(status int, headers []Header, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken || s.over {
		return
	}
	s.taken = true
	s.localEnd = end
	if !end {
		s.answered.Store(true)
	}
	fields := append([]Header{{":status", strconv.Itoa(status)}}, headers...)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.sealed {
		return
	}
	s.sealed = end
	s.c.writeHeaders(s.id, fields, end)
	s.c.wake()
}

// Relay moves bytes between the stream and the application until both
// directions have ended, either side resets, or it is aborted. It follows Accept,
// owns app and closes it, and then calls ended, once: before it returns, or later
// and from another goroutine, where the stream has been idle.
func (s *ServerStream) Relay(app *net.TCPConn, ended func(relay.Result)) {
	s.headers = nil // which would outlast their use
	s.relayed = true
	s.endHandler()
	s.relay(app, nil, func() {
		ended(s.result())
		s.served()
	})
}

func (c *conn) handlerDone() {
	c.mu.Lock()
	c.handlers--
	last := c.handlers == 0 && len(c.streams) == 0 && c.drain == drained && c.cause == ""
	c.mu.Unlock()
	if last {
		c.close(errDrained)
	}
}
