package hbone

import (
	"io"
	"net"
	"sync/atomic"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// bulkRead makes a frame of the largest buffer, once encrypted, still fit one.
const bulkRead = relay.LargeSize - 4*(5+1+16) - 2*frameHeader

// relay moves bytes between the application and the tunnel until the stream is
// over, and then calls ended. An idle stream does not keep the goroutine: then
// relay returns before that, and ended is called by another one. kept is not
// nil where the stream has not been answered; it receives what the application
// sends until then. If the stream is refused the application's connection stays
// open, and ended is not called.
//
// It waits on a small stack: the runtime halves one of which less than a
// quarter is in use.
func (s *stream) relay(tcp *net.TCPConn, kept *Replay, ended func()) (refused bool) {
	app, err := relay.NewSocket(tcp)
	if err != nil {
		s.brokenApp(err)
		tcp.Close()
		ended()
		return false
	}
	p := &pump{stream: s, app: app, kept: kept, ended: ended}
	s.attach(app)
	if s.c.parking != nil {
		s.c.parking.Enter(p)
	}
	if p.replay() && p.run() {
		return false
	}
	return p.end()
}

// end gives up what the relay has needed.
func (p *pump) end() (refused bool) {
	p.stayAwake()
	if p.app != nil && p.detach(p.app) {
		return true
	}
	p.ended()
	return false
}

// attach makes the application known to the reading goroutine and gives it
// what came before.
func (s *stream) attach(app *relay.Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.app = app
	s.startFlush()
	if s.remoteEnd && s.inbox.empty() {
		_ = app.CloseWrite()
	}
}

// detach ends the application's connection as the stream has ended, unless
// refused is true.
func (s *stream) detach(app *relay.Socket) (refused bool) {
	s.mu.Lock()
	s.app = nil
	refused = s.answer.keepsApp(s.failure.end)
	end := s.failure.end
	s.mu.Unlock()
	switch {
	case refused:
		app.Resume()
	case end == relay.Finished:
		app.Close()
	default:
		app.Reset()
	}
	return refused
}

// pump carries the application's bytes into the tunnel. All of its waits are
// on the application's socket, so that a reset of it is noticed in each; news
// from the tunnel interrupt them.
type pump struct {
	*stream
	app      *relay.Socket // nil while it is parked
	kept     *Replay
	appetite relay.Appetite
	ended    func()

	asked atomic.Bool // to rest
	spot  relay.Spot  // where it is parked
}

// run returns when the stream is over, or parked.
func (p *pump) run() (parked bool) {
	wait := false // at first, what is there goes out together with the headers
	for {
		if p.isOver() {
			return false
		}
		room := p.room()
		if room == 0 {
			p.c.flush()
			if !p.await() {
				return false
			}
			continue
		}
		if p.asked.Load() && p.park() {
			return true
		}
		buf, n, err := p.app.Read(p.appetite.Class(), frameHeader, min(room, bulkRead), wait)
		switch {
		case err == nil:
			p.asked.Store(false)
			p.appetite.Fed(n, min(len(buf.B)-frameHeader, bulkRead))
			p.keep(buf.B[frameHeader : frameHeader+n])
			err := p.forward(buf, n)
			buf.Free()
			if err != nil {
				return false
			}
		case err == relay.ErrWouldBlock: //nolint:errorlint // returned as it is
			wait = true
			p.c.flush()
		case err == relay.ErrInterrupted: //nolint:errorlint // returned as it is
			p.app.Resume()
		case err == io.EOF: //nolint:errorlint // returned as it is
			p.fin()
			return false
		default:
			p.brokenApp(err)
			return false
		}
	}
}

func (p *pump) isOver() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// room is how much may be read now: what the windows allow and, before the
// answer, what can be kept. When it is 0, whatever changes it interrupts.
func (p *pump) room() int {
	limit := largestWindow
	if p.kept != nil {
		limit = p.keepable()
	}
	if limit == 0 {
		return 0
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	n := p.c.grant(p.stream)
	if n == 0 {
		p.hungry = p.app
		p.c.starve(p.stream)
	}
	return min(n, limit)
}

func (p *pump) keepable() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answered.Load() {
		p.kept = nil
		return largestWindow
	}
	left := max(0, keptBytes-len(p.kept.Data))
	p.answer.wanted = left == 0
	return left
}

// keep remembers what is about to be sent, as long as it may have to be sent
// again to another endpoint.
func (p *pump) keep(data []byte) {
	if p.kept != nil {
		p.kept.Data = append(p.kept.Data, data...)
	}
}

// await waits for an interruption; it is false when the stream is over.
func (p *pump) await() bool {
	if err := p.app.WaitReset(); err != nil && err != relay.ErrInterrupted { //nolint:errorlint // returned as it is
		p.brokenApp(err)
		return false
	}
	p.app.Resume()
	p.asked.Store(false) // it was when the stream was stalled
	return !p.isOver()
}

// forward sends n bytes behind the room for a frame header.
func (p *pump) forward(buf *relay.Buffer, n int) error {
	for from := frameHeader; n > 0; {
		took, err := p.c.send(p.stream, buf.B, from, n)
		if err != nil {
			return err
		}
		if err := p.counts.MoreSent(took); err != nil {
			p.Abort(err)
			return err
		}
		from += took
		n -= took
		if n > 0 && took == 0 && p.room() == 0 && !p.await() {
			return errSealed
		}
	}
	return nil
}

// replay sends what an earlier stream could not deliver.
func (p *pump) replay() bool {
	if p.kept == nil {
		return true
	}
	data := p.kept.Data
	for len(data) > 0 {
		buf := relay.Get(relay.Large)
		n := copy(buf.B[frameHeader:frameHeader+bulkRead], data)
		data = data[n:]
		err := p.forward(buf, n)
		buf.Free()
		if err != nil {
			return false
		}
	}
	if p.kept.FIN {
		p.fin()
		return false
	}
	return true
}

// fin relays FIN and watches the application until the stream is over.
func (p *pump) fin() {
	if p.kept != nil {
		p.kept.FIN = true
	}
	p.stayAwake()
	p.mu.Lock()
	p.endLocal()
	p.finish()
	p.mu.Unlock()
	for !p.isOver() {
		if !p.await() {
			return
		}
	}
}

// grant is what both windows allow. Called with mu held.
func (c *conn) grant(s *stream) int {
	return int(max(0, min(s.window, c.window, int64(c.peer.frame))))
}

// starve notes that a stream waits for the connection's window. Called with mu
// held.
func (c *conn) starve(s *stream) {
	if c.window <= 0 && !s.starved {
		s.starved = true
		c.starved = append(c.starved, s)
	}
}

// feed wakes a stream that waits for window. Called with mu held.
func (c *conn) feed(s *stream) {
	if s.hungry == nil {
		return
	}
	if c.grant(s) == 0 {
		c.starve(s) // its own window may have opened after the connection's closed
		return
	}
	s.hungry.Interrupt()
	s.hungry = nil
}
