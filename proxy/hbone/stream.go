package hbone

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// stream is one tunneled connection, either end of it.
type stream struct {
	c        *conn
	id       uint32
	answered atomic.Bool // the answer, or the Accept, is out

	// Guarded by c.mu.
	window  int64         // what may be sent
	hungry  waiter        // whose wait to interrupt when there is window again
	sealed  bool          // END_STREAM or RST_STREAM is out: no DATA follows
	starved bool          // is in the connection's list
	turn    chan struct{} // wakes the stream as the one who writes; nil until it has waited for that

	counts relay.Counts

	mu        sync.Mutex // taken before c.mu, never while holding it
	app       *relay.Socket
	parked    *pump     // in the place of app, while no goroutine waits for it
	terminal  *Terminal // in the place of app
	inbox     inbox
	localEnd  bool // END_STREAM sent
	remoteEnd bool // END_STREAM received
	over      bool
	done      chan struct{} // see Done; nil until somebody asks
	failure   failure
	answer    *answer            // of the client's side; nil of the server's, and once the stream has been parked
	cancel    context.CancelFunc // server: of the handler, until it relays
}

// waiter waits for window.
type waiter interface{ Interrupt() }

// failure is an end that is not orderly.
type failure struct {
	end  relay.End
	err  error
	code http2.ErrCode
	tell bool // with RST_STREAM
}

// init enters the stream into the connection. Called with c.mu held.
func (s *stream) init(c *conn, id uint32) {
	s.c, s.id, s.window = c, id, c.peer.window
	s.inbox.init()
	c.streams[id] = s
}

// Done is closed when nothing more will come from the peer: it has ended its
// side, or the stream is over.
func (s *stream) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.remoteEnd || s.over {
			close(s.done)
		}
	}
	return s.done
}

// Err is why the stream is over; nil while it is not or when it ended in order.
func (s *stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure.err
}

// Counts are the bytes relayed so far.
func (s *stream) Counts() *relay.Counts { return &s.counts }

// Reset ends the stream at once: the applications at both ends see RST.
func (s *stream) Reset() {
	s.fail(failure{end: relay.Aborted, err: errAborted, code: http2.ErrCodeCancel, tell: true})
}

// End ends this side in order, for a stream that is not relayed.
func (s *stream) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocal()
	s.finish()
}

// endLocal sends END_STREAM. Called with mu held.
func (s *stream) endLocal() {
	if s.localEnd || s.over {
		return
	}
	s.localEnd = true
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.sealed {
		s.sealed = true
		s.c.control(func(w *http2.Framer) error { return w.WriteData(s.id, true, nil) })
	}
}

// remoteFIN is END_STREAM from the peer; it goes to the application behind
// what is queued for it.
func (s *stream) remoteFIN() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.remoteEnd {
		return
	}
	s.remoteEnd = true
	if s.done != nil {
		close(s.done)
	}
	if s.terminal != nil {
		s.terminal.wake()
	}
	if s.app != nil && s.inbox.empty() {
		_ = s.app.CloseWrite()
	}
	s.unpark() // to do it then
	s.finish()
}

// finish notes the orderly end of a stream whose both sides have ended and
// whose bytes the application has. Called with mu held.
func (s *stream) finish() {
	if s.over || !s.localEnd || !s.remoteEnd || !s.inbox.empty() {
		return
	}
	s.over = true
	s.failure.end = relay.Finished
	s.discard()
	s.c.forget(s, failure{}, 0)
	if s.app != nil {
		s.app.Interrupt()
	}
}

// fail ends the stream out of order; the first reason stays. The application
// sees RST, except before the answer: then the connection is the caller's to
// offer to another endpoint, and only its wait is interrupted.
func (s *stream) fail(f failure) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over, s.failure = true, f
	if !s.remoteEnd && s.done != nil {
		close(s.done)
	}
	outstanding := s.inbox.window
	s.discard()
	app := s.app
	keep := s.answer.keepsApp(f.end)
	s.answer.settle()
	s.c.forget(s, f, outstanding)
	if s.terminal != nil {
		s.terminal.wake()
		s.terminal.Interrupt()
	}
	if app != nil && keep {
		app.Interrupt()
	}
	s.unpark()
	s.mu.Unlock()
	s.endHandler()
	if app != nil && !keep {
		app.Reset()
	}
}

// endHandler ends the context of a server's handler.
func (s *stream) endHandler() {
	s.mu.Lock()
	cancel := s.cancel
	s.cancel = nil
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// violated resets the stream for what the peer did.
func (s *stream) violated(code http2.ErrCode) {
	s.fail(failure{end: relay.Lost, err: fmt.Errorf("peer broke HTTP/2: %v", code), code: code, tell: true})
}

func (s *stream) resetByPeer(code http2.ErrCode) {
	err := fmt.Errorf("%w (%v)", errReset, code)
	if code == http2.ErrCodeRefusedStream {
		err = &unprocessedError{errRefused}
	}
	s.fail(failure{end: relay.ResetByPeer, err: err})
}

// brokenApp ends the stream because its application's connection is gone.
func (s *stream) brokenApp(err error) {
	s.fail(failure{end: relay.ResetByApp, err: fmt.Errorf("application: %w", err), code: http2.ErrCodeConnect, tell: true})
}

func (s *stream) result() relay.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return relay.Result{Sent: s.counts.Sent.Load(), Received: s.counts.Received.Load(), End: s.failure.end, Err: s.failure.err}
}
