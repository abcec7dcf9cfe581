package http

import (
	"slices"
	"strconv"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

// fromApp handles the application's frames.
type fromApp struct{ *conn2 }

func (c fromApp) idle() error {
	if err := c.toApp.wake(); err != nil {
		return err
	}
	return c.toClient.flush()
}

func (c fromApp) onFrame(frame http2.Frame) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		return c.passSettings(f, &c.toClient, &c.toApp, false)
	case *http2.PingFrame:
		c.toClient.frame(func(w *http2.Framer) error { return w.WritePing(f.IsAck(), f.Data) })
	case *http2.GoAwayFrame:
		c.onGoAway(f)
	case *http2.WindowUpdateFrame:
		c.onWindow(f)
	case *http2.RSTStreamFrame:
		c.mu.Lock()
		s := c.byApp[f.StreamID]
		if s != nil {
			c.forget(s)
			c.toClient.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, f.ErrCode) })
		}
		c.mu.Unlock()
		if s != nil {
			s.over(errReset)
		}
	}
	return nil
}

// onGoAway translates the last stream that the application takes. Streams
// under other numbers there, which it does not, are refused one by one where
// the client cannot know.
func (c fromApp) onGoAway(f *http2.GoAwayFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.lastID
	var refused []*stream2
	if f.LastStreamID == maxLastStream {
		last = maxLastStream
	} else {
		for id, s := range c.byApp {
			if id > f.LastStreamID {
				refused = append(refused, s)
			}
		}
	}
	slices.SortFunc(refused, func(a, b *stream2) int { return int(a.id) - int(b.id) })
	for _, s := range refused {
		c.forget(s)
		c.toClient.frame(func(w *http2.Framer) error { return w.WriteRSTStream(s.id, http2.ErrCodeRefusedStream) })
		go s.over(errReset) // takes mu
	}
	debug := slices.Clone(f.DebugData())
	c.toClient.frame(func(w *http2.Framer) error { return w.WriteGoAway(last, f.ErrCode, debug) })
}

// onHeaders passes on a response's header, an interim one, or trailers.
func (c fromApp) onHeaders(id uint32, m h2.Message) error {
	c.mu.Lock()
	s := c.byApp[id]
	if s == nil {
		c.mu.Unlock()
		return nil
	}
	interim := s.status < 200
	if !s.takeHeaders(m) {
		c.mu.Unlock()
		if c.reset(s, http2.ErrCodeProtocol, http2.ErrCodeProtocol) {
			s.over(protocolError("a malformed response"))
		}
		return nil
	}
	if interim && s.status >= 200 {
		m.Fields = s.response.apply(m.Fields)
	}
	c.toClient.headers(s.id, m.Fields, m.End)
	over := c.endApp(s, m.End)
	c.mu.Unlock()
	if over {
		s.over(nil)
	}
	return nil
}

// takeHeaders notes what a response says of its end. Called with the
// connection's mu held.
func (s *stream2) takeHeaders(m h2.Message) bool {
	if m.Malformed != "" || m.TooLarge || s.appEnd {
		return false
	}
	pseudo := 0
	for _, f := range m.Fields {
		if f.IsPseudo() {
			pseudo++
		}
	}
	if status := m.Value("grpc-status"); status != "" {
		if n, ok := decimal(status); ok {
			s.grpc = int(n)
		}
	}
	if s.status >= 200 { // trailers
		return pseudo == 0 && m.End
	}
	status, err := strconv.Atoi(m.Value(":status"))
	if err != nil || pseudo != 1 || status < 100 || status > 999 || status == 101 || status < 200 && m.End {
		return false
	}
	s.status = status
	return true
}

// endApp notes END_STREAM of the application. Called with mu held.
func (c *conn2) endApp(s *stream2, end bool) (over bool) {
	if !end {
		return false
	}
	s.appEnd = true
	if s.sentEnd {
		c.forget(s)
	}
	return s.sentEnd
}

// onData passes on a part of a response's body.
func (c fromApp) onData(id uint32, b []byte, from int, end, padded bool) error {
	size := len(b) - from
	c.mu.Lock()
	s := c.byApp[id]
	if s == nil || s.appEnd || s.status < 200 {
		c.mu.Unlock()
		if s != nil && c.reset(s, http2.ErrCodeProtocol, http2.ErrCodeProtocol) {
			s.over(protocolError("DATA in front of a response, or behind it"))
		}
		c.refund(size)
		return nil
	}
	over := c.endApp(s, end)
	if over {
		s.sealed.Store(false) // but for this last part
	}
	c.mu.Unlock()
	s.Received.Add(int64(size))
	putData(b, from, s.id, end, padded)
	sent, err := c.toClient.data(b, from-frameHeader, &s.sealed)
	if over {
		s.over(nil)
	}
	if !sent && err == nil {
		c.refund(size)
	}
	return err
}
