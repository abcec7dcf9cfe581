package hbone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// Request is what a CONNECT asks for.
type Request struct {
	Authority string   // "IP:port" of the workload, as the server is to dial it
	Headers   []Header // such as baggage, forwarded, traceparent
	// Answered, if set, is called once if the answer is 200, and Working
	// each time the peer says that its answer takes longer: by the goroutine
	// that reads the connection, so they must not wait.
	Answered func(*Stream)
	Working  func()
}

// Answer is the server's response.
type Answer struct {
	Status  int
	Headers []Header
}

// Header is the first value of a header, or "".
func (a Answer) Header(name string) string { return value(a.Headers, name) }

// Stream is a client's stream. It ends by Relay returning, by End, or by Reset.
type Stream struct {
	stream
}

// answer is what a client's stream waits for. Guarded by the stream's mu.
type answer struct {
	ready   chan struct{} // closed when there is one, or never will be; nil until somebody waits
	settled bool
	Answer
	wanted  bool // the pump waits for it
	timer   *time.Timer
	timeout time.Duration
	told    func() // of 200; nil: nobody is
	working func() // of 1xx; nil: nobody is
}

func (a *answer) settle() {
	if a != nil && !a.settled {
		a.settled = true
		a.timer.Stop()
		a.timer = nil // with what it would have done
		if a.ready != nil {
			close(a.ready)
		}
	}
}

// keepsApp reports whether an application's connection survives this end of
// its stream, to be offered to another endpoint.
func (a *answer) keepsApp(end relay.End) bool {
	return a != nil && a.Status != 200 && (end == relay.Lost || end == relay.ResetByPeer)
}

// openStream sends the request, if this connection takes another stream. It
// leaves the request to be written with the first bytes of the stream.
func (c *conn) openStream(r Request, timeout time.Duration) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.takesStream(time.Now()) {
		return nil
	}
	if c.lastID == 0 {
		c.lastID = 1
	} else {
		c.lastID += 2
	}
	s := new(Stream)
	s.stream.init(c, c.lastID)
	s.answer = &answer{timeout: timeout, working: r.Working}
	if r.Answered != nil {
		s.answer.told = func() { r.Answered(s) }
	}
	s.answer.timer = time.AfterFunc(timeout, func() {
		s.fail(failure{end: relay.Lost, err: fmt.Errorf("no answer in %v", timeout), code: http2.ErrCodeCancel, tell: true})
	})
	fields := make([]Header, 0, len(r.Headers)+2)
	fields = append(fields, Header{":method", "CONNECT"}, Header{":authority", r.Authority})
	c.writeHeaders(s.id, append(fields, r.Headers...), false)
	return s
}

func (c *conn) takesStream(now time.Time) bool {
	return c.cause == "" && c.drain == serving && c.lastID < 1<<31-3 &&
		!(c.single && c.lastID > 0) &&
		uint32(len(c.streams)) < min(clientStreams, c.peer.streams) &&
		(c.notAfter.IsZero() || now.Before(c.notAfter)) &&
		(c.wire == nil || !c.wire.peerEnded())
}

// onAnswer handles the response of a stream that has none.
func (s *stream) onAnswer(m message) error {
	if m.malformed != "" || m.tooLarge {
		s.violated(http2.ErrCodeProtocol)
		return nil
	}
	status, _ := strconv.Atoi(value(m.fields, ":status")) // 0 where it is none
	if status < 100 || status > 999 {
		s.violated(http2.ErrCodeProtocol)
		return nil
	}
	if status < 200 && !m.end {
		s.stillWorking()
		return nil
	}
	s.mu.Lock()
	s.answer.Answer = Answer{Status: status, Headers: m.fields[1:]}
	established := status == 200 && !s.over
	if established {
		s.answered.Store(true)
		s.answer.settle()
		if s.answer.wanted && s.app != nil {
			s.app.Interrupt()
		}
	}
	unfinished := !s.localEnd || !m.end
	told := s.answer.told
	s.answer.told, s.answer.working = nil, nil // with the request, which they know
	s.mu.Unlock()
	if established && told != nil {
		told()
	}
	switch {
	case status != 200:
		s.fail(failure{end: relay.ResetByPeer, err: errStatus, code: http2.ErrCodeCancel, tell: unfinished})
	case m.end:
		s.remoteFIN()
	}
	return nil
}

// stillWorking gives a peer that says so more time for its answer.
func (s *stream) stillWorking() {
	s.mu.Lock()
	working := s.answer.working
	if !s.answer.settled && s.answer.timer.Stop() {
		s.answer.timer.Reset(s.answer.timeout)
	}
	s.mu.Unlock()
	if working != nil {
		working()
	}
}

var errStatus = errors.New("peer refused the stream")

// Answer waits for the response without reading the application: for streams
// that may be joined outside of the tunnel. A status other than 200, or none,
// is a *RefusedError.
func (s *Stream) Answer(ctx context.Context) (Answer, error) {
	s.c.flush()
	select {
	case <-s.ready():
	case <-ctx.Done():
		s.Abort(context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answered.Load() {
		return s.answer.Answer, nil
	}
	return Answer{}, s.refusal(&Replay{})
}

// ready is closed when there is an answer, or never will be.
func (s *Stream) ready() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer.ready == nil {
		s.answer.ready = make(chan struct{})
		if s.answer.settled {
			close(s.answer.ready)
		}
	}
	return s.answer.ready
}

// Relay moves bytes between the application and the stream until both
// directions have ended, either side resets, or it is aborted. It does not wait
// for the answer before it sends; replay, which may be nil, goes first.
//
// It owns app and closes it, and then calls ended, once: before it returns, or
// later and from another goroutine, where the stream has been idle. Except when
// it returns a *RefusedError: then app is open, the error holds what it had
// sent, and ended is not called.
func (s *Stream) Relay(app *net.TCPConn, replay *Replay, ended func(relay.Result)) error {
	kept := s.kept(replay)
	if s.relay(app, kept, func() { ended(s.result()) }) {
		return s.refused(kept)
	}
	return nil
}

// kept is where to remember what is sent before the answer, and nil once there
// is one and nothing to be sent again.
//
//go:noinline // Relay's own stack is to stay small
func (s *Stream) kept(replay *Replay) *Replay {
	if replay == nil {
		replay = new(Replay)
	}
	if s.answered.Load() && len(replay.Data) == 0 && !replay.FIN {
		return nil
	}
	return &Replay{Data: replay.Data, FIN: replay.FIN}
}

func (s *Stream) refused(kept *Replay) error {
	if kept == nil {
		kept = new(Replay)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal(kept)
}

// refusal is called with mu held.
func (s *Stream) refusal(kept *Replay) *RefusedError {
	e := &RefusedError{Status: s.answer.Status, Headers: s.answer.Headers, Replay: kept}
	if e.Status == 0 {
		e.Err = s.failure.err
	}
	unprocessed := (*unprocessedError)(nil)
	e.safe = errors.As(s.failure.err, &unprocessed) || e.Status == 0 && s.counts.Sent.Load() == 0
	return e
}

// Abort ends the stream at once, for a reason that its result then has: both
// applications see RST. It may wait for locks, and for nothing else.
func (s *stream) Abort(cause error) {
	s.fail(failure{end: relay.Aborted, err: cause, code: http2.ErrCodeCancel, tell: true})
}
