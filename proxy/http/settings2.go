package http

import (
	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/h2"
)

// passSettings passes on what concerns the ends. Compression is each hop's
// own, nothing is pushed, extended CONNECT is not offered, and limits are the
// smaller of the end's and ours.
func (c *conn2) passSettings(f *http2.SettingsFrame, to, back *sender2, fromClient bool) error {
	if f.IsAck() {
		c.mu.Lock()
		ours := fromClient && !c.greeted
		if ours {
			c.greeted = true
			for _, s := range c.byClient {
				s.credit -= startWindow - undecided
			}
		}
		c.mu.Unlock()
		if !ours {
			to.frame((*http2.Framer).WriteSettingsAck)
		}
		return nil
	}
	var out []http2.Setting
	initial := int64(-1)
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
			if !fromClient {
				initial = int64(s.Val)
				s.Val = min(s.Val, undecided)
			}
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
	if initial >= 0 {
		c.restart(initial)
	}
	return nil
}

// restart notes the application's window of new streams, which moves those of
// the others (RFC 9113 section 6.9.2).
func (c *conn2) restart(initial int64) {
	c.mu.Lock()
	ours := initial - c.initial
	clients := min(initial, undecided) - min(c.initial, undecided)
	c.initial = initial
	for _, s := range c.byApp {
		s.flow.window += ours
		ahead := s.flow.ahead + clients - ours
		s.grant(-ahead)
		s.flow.ahead = max(0, ahead)
	}
	for _, s := range c.byClient {
		if s.wants > 0 {
			c.invite(s)
		}
	}
	over := c.releaseAll()
	c.mu.Unlock()
	for _, s := range over {
		s.over(nil)
	}
}
