package hbone

import (
	"errors"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// inbox is the receiving half of a stream: its window, and what the
// application has not taken yet. Guarded by the stream's mu.
type inbox struct {
	window int64 // what the peer may still send
	held   int64 // received and not delivered
	target int64 // window to hold out while the application keeps up

	queue    []chunk
	holding  holding
	flushing bool
	credited time.Time
}

// chunk is queued bytes, buf.B[r:w].
type chunk struct {
	buf  *relay.Buffer
	r, w int
}

func (b *inbox) init() { b.window, b.target = firstWindow, firstWindow }

func (b *inbox) empty() bool { return len(b.queue) == 0 && !b.flushing }

// free gives up a buffer of the queue. Called with mu held.
func (s *stream) free(k *chunk) {
	s.c.budget.drop(s, len(k.buf.B))
	k.buf.Free()
}

// discard gives up what the application will not take any more. Called with
// mu held.
func (s *stream) discard() {
	b := &s.inbox
	for i := range b.queue {
		s.free(&b.queue[i])
	}
	b.queue = nil
	s.c.budget.give(b.target - firstWindow)
	b.target, b.held = firstWindow, 0
}

// expect charges a DATA frame of n bytes to the window.
func (s *stream) expect(n int64) http2.ErrCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.remoteEnd:
		return http2.ErrCodeStreamClosed
	case s.c.server == nil && !s.answered.Load():
		return http2.ErrCodeProtocol
	case n > s.inbox.window:
		return http2.ErrCodeFlowControl
	}
	s.inbox.window -= n
	s.inbox.held += n
	return http2.ErrCodeNo
}

// padding counts as delivered at once.
func (s *stream) padding(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inbox.held -= n
	s.credit()
}

// deliver gives bytes to the application as far as it takes them now and
// queues the rest. It never waits.
func (s *stream) deliver(p []byte) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	if (s.app != nil || s.parked != nil) && s.inbox.empty() {
		n, err := s.write(p)
		if err != nil {
			s.mu.Unlock()
			s.brokenApp(err)
			return
		}
		if err := s.delivered(n); err != nil {
			s.mu.Unlock()
			s.Abort(err)
			return
		}
		p = p[n:]
	}
	evicted := s.enqueue(p)
	s.startFlush()
	if s.terminal != nil {
		s.terminal.wake()
	}
	s.mu.Unlock()
	for _, other := range evicted {
		other.fail(failure{end: relay.Lost, err: errUnreadTotal, code: http2.ErrCodeEnhanceYourCalm, tell: true})
	}
}

// write gives the application what it takes at once. Called with mu held.
func (s *stream) write(p []byte) (int, error) {
	if s.parked != nil {
		return s.parked.spot.Write(p)
	}
	return s.app.Write(p)
}

var errUnreadTotal = errors.New("the pod's applications leave more unread than its share of memory")

// enqueue keeps bytes, which fit the window. It returns the streams that must
// fail for them to fit the budget. Called with mu held.
func (s *stream) enqueue(p []byte) (evicted []*stream) {
	b := &s.inbox
	for len(p) > 0 {
		if n := len(b.queue); n == 0 || b.queue[n-1].w == len(b.queue[n-1].buf.B) {
			class := relay.Small
			if len(p) > 4<<10 {
				class = relay.Medium
			}
			k := chunk{buf: relay.Get(class)}
			evicted = append(evicted, s.c.budget.keep(s, len(k.buf.B))...)
			b.queue = append(b.queue, k)
		}
		last := &b.queue[len(b.queue)-1]
		n := copy(last.buf.B[last.w:], p)
		last.w += n
		p = p[n:]
	}
	return evicted
}

// startFlush makes a goroutine that lives as long as something is queued. A
// parked stream does it once it has its socket back. Called with mu held.
func (s *stream) startFlush() {
	if len(s.inbox.queue) > 0 {
		s.unpark()
	}
	if s.app != nil && !s.inbox.flushing && len(s.inbox.queue) > 0 {
		s.inbox.flushing = true
		go s.flushInbox(s.app)
	}
}

func (s *stream) flushInbox(app *relay.Socket) {
	var failed, enough error
	err := app.WaitWrite(func(uintptr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for len(s.inbox.queue) > 0 {
			k := &s.inbox.queue[0]
			n, err := app.Write(k.buf.B[k.r:k.w])
			if err != nil {
				failed = err
				return true
			}
			k.r += n
			whole := k.r == k.w
			if whole {
				s.free(k)
				s.inbox.queue = append(s.inbox.queue[:0], s.inbox.queue[1:]...)
			}
			if enough = s.delivered(n); enough != nil || !whole {
				return enough != nil
			}
		}
		s.inbox.queue = nil
		return true
	})
	switch {
	case enough != nil:
		s.Abort(enough)
	case failed != nil:
		s.brokenApp(failed)
	case err != nil:
		s.brokenApp(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inbox.flushing = false
	if s.over {
		return
	}
	s.startFlush() // what came after the last look
	if s.remoteEnd && s.inbox.empty() {
		_ = app.CloseWrite()
		s.finish()
	}
}

// delivered counts n bytes that the application has and credits the peer. Its
// error is to end the stream. Called with mu held.
func (s *stream) delivered(n int) error {
	s.inbox.held -= int64(n)
	s.credit()
	return s.counts.MoreReceived(n)
}

// credit gives the peer window once half of it is used. A window that is used
// up fast is doubled while the budget allows; one that is used slowly shrinks.
func (s *stream) credit() {
	b := &s.inbox
	if b.target-b.window-b.held < b.target/2 || s.remoteEnd || s.over || !s.accepted() {
		return
	}
	now := time.Now()
	elapsed := now.Sub(b.credited)
	b.credited = now
	switch {
	case elapsed < growWithin && b.held == 0 && b.target < largestWindow && s.c.budget.take(b.target):
		b.target *= 2
	case elapsed > shrinkAfter && b.target > firstWindow:
		b.target /= 2
		s.c.budget.give(b.target)
	}
	grant := b.target - b.window - b.held
	if grant <= 0 {
		return
	}
	b.window += grant
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.streams[s.id] == s {
		s.c.control(func(w *http2.Framer) error { return w.WriteWindowUpdate(s.id, uint32(grant)) })
	}
}

// Half a window used within growWithin means that the window, not the
// application, may be what limits the stream.
const (
	growWithin  = 25 * time.Millisecond
	shrinkAfter = 5 * time.Second
)

func (s *stream) accepted() bool { return s.answered.Load() }
