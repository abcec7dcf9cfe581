package http

import (
	"slices"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// This file is about bodies of HTTP/2 around decisions. What comes of one that
// is not decided on is held, where the gate has room for it. So that the other
// streams go on, it costs nothing of the connection's window: the client is lent
// as much, and the application's next grants go to paying that back. What the
// application has no window for meanwhile is held, too.

// account is what may be sent to the application, of one stream or of all.
type account struct {
	window int64 // what the application takes
	ahead  int64 // what the client was granted beyond that; below 0 it is owed something
}

// grow adds what the application grants, and returns what of it is the client's.
func (a *account) grow(n int64) (pass int64) {
	a.window += n
	pass = max(0, n-a.ahead)
	a.ahead = max(0, a.ahead-n)
	return pass
}

// fits reports whether the application takes n bytes of the stream now. Called
// with the connection's mu held.
func (s *stream2) fits(n int) bool {
	return int64(n) <= s.flow.window && int64(n) <= s.c.flow.window
}

// grant lets the client send n more bytes, on all streams together. Called with
// mu held.
func (c *conn2) grant(n int) {
	if n > 0 {
		c.credit += int64(n)
		c.toClient.frame(func(w *http2.Framer) error { return w.WriteWindowUpdate(0, uint32(n)) })
	}
}

// grant lets the client send n more bytes of the stream. Called with the
// connection's mu held.
func (s *stream2) grant(n int64) {
	if n > 0 {
		s.credit += n
		s.c.toClient.frame(func(w *http2.Framer) error { return w.WriteWindowUpdate(s.id, uint32(n)) })
	}
}

// collect waits for the beginning of a body that the decision wants to see.
func (c *conn2) collect(s *stream2, wants int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byClient[s.id] != s { // over meanwhile
		close(s.asked)
		return
	}
	s.wants = wants
	s.slow = time.AfterFunc(bodyTimeout, func() { c.expire(s) })
	c.invite(s)
	if expects(s.request.Fields) {
		c.toClient.headers(s.id, []hpack.HeaderField{{Name: ":status", Value: "100"}}, false)
	}
}

// invite lets the client send as much as the decision wants. Called with mu held.
func (c *conn2) invite(s *stream2) {
	if more := int64(s.wants) - min(c.initial, undecided) - s.flow.ahead; more > 0 {
		s.flow.ahead += more
		s.grant(more)
	}
}

// expire answers a request whose body did not come.
func (c *conn2) expire(s *stream2) {
	c.mu.Lock()
	if c.byClient[s.id] != s || s.wants == 0 {
		c.mu.Unlock()
		return
	}
	c.giveUp(s, &Refusal{Status: 408, Message: "the body did not come in time"}, errSlowBody)
	_ = c.toClient.wake()
}

// giveUp answers a request in front of its decision. Called with mu held, which
// it gives up.
func (c *conn2) giveUp(s *stream2, refusal *Refusal, why error) {
	s.status = refusal.Status
	c.forget(s)
	c.answer(s, refusal)
	c.mu.Unlock()
	s.over(why)
}

// hold keeps a part of a body until the application gets it. Called with mu
// held, which it gives up.
func (c *conn2) hold(s *stream2, data []byte, padded bool) error {
	if padded {
		padding := 1 + int(data[0])
		data = data[1 : len(data)-int(data[0])]
		c.grant(padding)
		s.grant(int64(padding))
	}
	if s.app == 0 && !s.gate.Hold(len(data)) {
		c.grant(len(data))
		if s.wants > 0 {
			c.ready(s, Content{NoRoom: true}) // gives up mu
		} else {
			c.giveUp(s, NoRoom(), ErrNoRoom) // gives up mu
		}
		return nil
	}
	s.held = append(s.held, data...)
	if s.app != 0 { // its window will come
		over := c.release(s)
		c.mu.Unlock()
		if over {
			s.over(nil)
		}
		return nil
	}
	s.room += len(data)
	if c.lent += len(data); c.lent > maxLent {
		c.mu.Unlock()
		return errUnread
	}
	s.lent += len(data)
	c.grant(len(data))
	c.collected(s) // gives up mu
	return nil
}

// collected has a stream decided on if its decision has waited for this part
// of the body. Called with mu held, which it gives up.
func (c *conn2) collected(s *stream2) {
	enough := s.wants > 0 && (s.clientEnd || len(s.held) >= s.wants)
	if !enough {
		c.mu.Unlock()
		return
	}
	c.ready(s, Content{Bytes: s.held[:min(len(s.held), s.wants)], Whole: (s.clientEnd || s.left == 0) && len(s.held) <= s.wants})
}

// ready has a stream decided on whose body is not waited for any more. Called
// with mu held, which it gives up.
func (c *conn2) ready(s *stream2, early Content) {
	s.wants = 0
	s.slow.Stop()
	c.mu.Unlock()
	c.ask(s, early)
}

// start lets a stream that the application has got go on. Called with mu held.
func (c *conn2) start(s *stream2) (over bool) {
	s.flow.window = c.initial
	s.flow.ahead += min(c.initial, undecided) - c.initial
	if len(s.held) > 0 {
		s.settle()
	}
	return c.release(s)
}

// settle grants the client what it is owed of a stream that goes on. Most end with
// the first DATA, for which it has window enough: a frame for each would be a
// write for each. Called with the connection's mu held.
func (s *stream2) settle() {
	if s.flow.ahead < 0 && !s.clientEnd {
		s.grant(-s.flow.ahead)
		s.flow.ahead = 0
	}
}

// release passes on what was held of a stream, as far as the application takes
// it. Called with mu held.
func (c *conn2) release(s *stream2) (over bool) {
	for len(s.held) > 0 {
		n := int(min(int64(len(s.held)), headerFragment, s.flow.window, c.flow.window))
		if n <= 0 {
			c.holding[s] = true
			return false
		}
		part := s.held[:n]
		s.held = s.held[n:]
		s.free(n)
		lent := min(n, s.lent)
		s.lent -= lent
		c.lent -= lent
		c.flow.ahead += int64(lent)
		s.flow.window -= int64(n)
		c.flow.window -= int64(n)
		s.Sent.Add(int64(n))
		s.sentEnd = s.clientEnd && len(s.held) == 0 && s.trailers == nil
		c.toApp.held(s.app, s.sentEnd, part)
	}
	s.held = nil
	delete(c.holding, s)
	if s.clientEnd && !s.sentEnd {
		s.sentEnd = true
		if s.trailers != nil {
			c.toApp.headers(s.app, s.trailers.Fields, true)
		} else {
			c.toApp.frame(func(w *http2.Framer) error { return w.WriteData(s.app, true, nil) })
		}
	}
	if s.sentEnd && s.appEnd {
		c.forget(s)
		return true
	}
	return false
}

// free gives back room of n bytes that are held no longer, as far as there was
// any: what came behind the decision has none.
func (s *stream2) free(n int) {
	if n = min(n, s.room); n > 0 {
		s.room -= n
		s.gate.Free(n)
	}
}

// drop forgets what is held of a stream. What a
// decision under way looks at keeps its room until that is made. Called with mu
// held.
func (c *conn2) drop(s *stream2) {
	delete(c.holding, s)
	c.grant(len(s.held) - s.lent)
	c.lent -= s.lent
	s.held, s.lent = nil, 0
	if s.wants > 0 { // the gate is not to be asked any more
		s.wants = 0
		s.slow.Stop()
		close(s.asked)
	}
	select {
	case <-s.asked:
		s.free(s.room)
	default: // decide does
	}
}

// onWindow notes what the application grants, and passes it on.
func (c fromApp) onWindow(f *http2.WindowUpdateFrame) {
	c.mu.Lock()
	var over []*stream2
	if f.StreamID == 0 {
		c.grant(int(c.flow.grow(int64(f.Increment))))
		over = c.releaseAll()
	} else if s := c.byApp[f.StreamID]; s != nil {
		s.grant(s.flow.grow(int64(f.Increment)))
		if c.holding[s] && c.release(s) {
			over = append(over, s)
		}
	}
	c.mu.Unlock()
	for _, s := range over {
		s.over(nil)
	}
}

// releaseAll passes on what was held, oldest streams first. Called with mu held.
func (c *conn2) releaseAll() (over []*stream2) {
	if len(c.holding) == 0 {
		return nil
	}
	var streams []*stream2
	for s := range c.holding {
		streams = append(streams, s)
	}
	slices.SortFunc(streams, func(a, b *stream2) int { return int(a.id) - int(b.id) })
	for _, s := range streams {
		if c.release(s) {
			over = append(over, s)
		}
	}
	return over
}
