package hbone

import (
	"errors"
	"time"

	"golang.org/x/net/http2"
)

// What RFC 9113 section 6.5.2 assumes before SETTINGS arrive.
const (
	defaultWindow = 65535
	defaultFrame  = 16384
)

// timing is what a connection waits for; tests wait for less.
type timing struct {
	tick   time.Duration // between PINGs
	settle time.Duration // until SETTINGS have come
	ping   time.Duration // a PING unanswered
	idle   time.Duration // without streams
}

// A client leaves first, so that no stream meets a connection that the server
// is closing for being idle.
func (t timing) orDefault(server bool) timing {
	if t.tick != 0 {
		return t
	}
	t = timing{tick: 10 * time.Second, settle: 10 * time.Second, ping: 20 * time.Second, idle: 300 * time.Second}
	if server {
		t.idle *= 2
	}
	return t
}

// settings are the peer's.
type settings struct {
	window  int64 // initial, of a stream
	frame   int   // largest payload
	streams uint32
}

var defaultSettings = settings{window: defaultWindow, frame: defaultFrame, streams: 1<<32 - 1}

// ours is what this end announces.
func (c *conn) ours() []http2.Setting {
	common := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: firstWindow},
		{ID: http2.SettingMaxFrameSize, Val: maxFrame},
	}
	if c.server == nil {
		return append(common,
			http2.Setting{ID: http2.SettingEnablePush, Val: 0},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: clientHeaderList})
	}
	return append(common,
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: serverStreams},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: serverHeaderList})
}

// onSettings applies the peer's settings to the connection and its streams.
func (c *conn) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if !c.settled.Load() {
			return protocolError("SETTINGS acknowledged before sent")
		}
		c.mu.Lock()
		if c.rtt == 0 {
			c.rtt = time.Since(c.started)
		}
		c.mu.Unlock()
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			code := http2.ErrCodeProtocol
			if e := http2.ConnectionError(0); errors.As(err, &e) {
				code = http2.ErrCode(e)
			}
			return &connError{code, CauseProtocol, "invalid setting " + s.String()}
		}
		return c.applySetting(s)
	})
	if err != nil {
		return err
	}
	c.settled.Store(true)
	c.control((*http2.Framer).WriteSettingsAck)
	return nil
}

func (c *conn) applySetting(s http2.Setting) error {
	switch s.ID {
	case http2.SettingInitialWindowSize:
		delta := int64(s.Val) - c.peer.window
		c.peer.window = int64(s.Val)
		for _, st := range c.streams {
			if st.window += delta; st.window > maxWindow {
				return &connError{http2.ErrCodeFlowControl, CauseFlowControl, "SETTINGS take a window past 2^31-1"}
			}
			c.feed(st)
		}
	case http2.SettingMaxFrameSize:
		c.peer.frame = int(s.Val)
	case http2.SettingMaxConcurrentStreams:
		c.peer.streams = s.Val
	case http2.SettingHeaderTableSize:
		c.encoder.SetMaxDynamicTableSize(min(s.Val, headerTable))
	}
	return nil
}
