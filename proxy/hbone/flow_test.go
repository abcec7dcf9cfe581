package hbone

import (
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// A stream may run out of its own window while the connection has some, and
// get more when the connection has none: it must go on when that changes.
func TestWindowsOpenInAnyOrder(t *testing.T) {
	near, far := tcpPair(t)
	wire, err := NewWire(near)
	must(t, err)
	c := newConn(wire, nil, nil, certificateEnd{}, timing{})
	c.greetPeer()
	var running sync.WaitGroup
	c.flush()
	running.Go(func() { c.run() })

	far.SetDeadline(time.Now().Add(patience))
	_, err = io.ReadFull(far, make([]byte, len(http2.ClientPreface)))
	must(t, err)
	server := http2.NewFramer(far, far)
	const own = 1000
	server.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: own})
	eventually(t, func() bool { return c.settled.Load() })

	block := []byte{0x88} // :status 200
	var apps []io.Closer
	streams := make([]*Stream, 2)
	for i := range streams {
		app, relayed := tcpPair(t)
		app.Write(make([]byte, 200_000))
		apps = append(apps, app)
		streams[i] = c.openStream(Request{Authority: "10.0.0.1:80"}, time.Minute)
		server.WriteHeaders(http2.HeadersFrameParam{StreamID: streams[i].id, BlockFragment: block, EndHeaders: true})
		eventually(t, func() bool { return streams[i].answered.Load() })
		running.Go(func() { streams[i].Relay(relayed, nil, ignore) })
	}
	first, second := streams[0], streams[1]
	sent := func(s *Stream, n int64) func() bool {
		return func() bool { return s.counts.Sent.Load() == n && s.waits() }
	}
	eventually(t, sent(first, own))
	server.WriteWindowUpdate(second.id, 1<<20) // takes the rest of the connection's
	eventually(t, sent(second, defaultWindow-own))
	server.WriteWindowUpdate(first.id, own)
	eventually(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return first.window == own })
	server.WriteWindowUpdate(0, 1<<20)
	eventually(t, func() bool { return first.counts.Sent.Load() == 2*own })

	c.close(&ConnError{CauseCanceled, errAborted})
	running.Wait()
	for _, app := range apps {
		app.Close()
	}
	if end := first.result().End; end != relay.Lost {
		t.Errorf("ended by %s", end)
	}
}

// waits reports whether the stream waits for window.
func (s *Stream) waits() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.hungry != nil
}
