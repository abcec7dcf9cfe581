package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// attacker is a client that sends what it likes.
type attacker struct {
	*http2.Framer
	nc      net.Conn
	encoder *hpack.Encoder
	block   bytes.Buffer
}

func newAttacker(t testing.TB, w *world) *attacker {
	t.Helper()
	cert := w.ca.issue(t, "spiffe://td/ns/a/sa/attacker", time.Hour)
	nc, err := tls.Dial("tcp", w.listener.Addr().String(), w.ca.config(cert))
	must(t, err)
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	a := &attacker{Framer: http2.NewFramer(nc, nc), nc: nc}
	a.AllowIllegalWrites = true
	a.encoder = hpack.NewEncoder(&a.block)
	return a
}

// greet sends what a client has to send first.
func (a *attacker) greet() {
	io.WriteString(a.nc, http2.ClientPreface)
	a.WriteSettings()
}

func (a *attacker) headers(fields ...string) []byte {
	a.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		a.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(a.block.Bytes())
}

func (a *attacker) connect(id uint32, fields ...string) {
	fields = append([]string{":method", "CONNECT", ":authority", "10.0.0.1:80"}, fields...)
	a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: a.headers(fields...), EndHeaders: true})
}

// verdict is what the server made of it.
type verdict struct {
	goAway http2.ErrCode
	reset  http2.ErrCode
	status string
}

const none = http2.ErrCode(0xffff)

// read collects frames until one is the verdict or the connection ends.
func (a *attacker) read() verdict {
	v := verdict{goAway: none, reset: none}
	decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			v.status = f.Value
		}
	})
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return v
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			v.goAway = f.ErrCode
			return v
		case *http2.RSTStreamFrame:
			if f.ErrCode == http2.ErrCodeRefusedStream {
				continue // more streams than agreed
			}
			v.reset = f.ErrCode
			return v
		case *http2.HeadersFrame:
			if decoder.Write(f.HeaderBlockFragment()); v.status != "200" {
				return v
			}
		}
	}
}

// expectAlive wants an answer to PING.
func (a *attacker) expectAlive(t *testing.T) {
	t.Helper()
	a.WritePing(false, [8]byte{1})
	for {
		f, err := a.ReadFrame()
		if err != nil {
			t.Errorf("the connection did not survive: %v", err)
			return
		}
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() {
			return
		}
	}
}

func TestHostile(t *testing.T) {
	data := make([]byte, 16<<10)
	frame := func(a *attacker, kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
		a.WriteRawFrame(kind, flags, id, payload)
	}
	goAway := func(c http2.ErrCode) verdict { return verdict{goAway: c, reset: none} }
	status := func(s string) verdict { return verdict{goAway: none, reset: none, status: s} }

	cases := []struct {
		name  string
		send  func(*attacker)
		want  verdict
		cause Cause // of the connection's end; "" if it must survive
	}{
		{"a request", func(a *attacker) { a.connect(1); a.WriteRSTStream(3, 0) }, verdict{goAway: http2.ErrCodeProtocol, reset: none, status: "200"}, CauseProtocol},
		{"GET", func(a *attacker) {
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: a.headers(":method", "GET", ":path", "/", ":scheme", "https", ":authority", "a")})
		}, status("400"), ""},
		{"extended CONNECT", func(a *attacker) {
			a.connect(1, ":protocol", "websocket", ":scheme", "https", ":path", "/")
		}, status("400"), ""},
		{"no authority", func(a *attacker) {
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: a.headers(":method", "CONNECT")})
		}, status("400"), ""},
		{"two authorities", func(a *attacker) { a.connect(1, ":authority", "10.0.0.2:80") }, status("400"), ""},
		{"header name in upper case", func(a *attacker) { a.connect(1, "Baggage", "x") }, status("400"), ""},
		{"line break in a value", func(a *attacker) { a.connect(1, "baggage", "a\r\nb") }, status("400"), ""},
		{"header list too large", func(a *attacker) {
			block := a.headers(":method", "CONNECT", ":authority", "x", "a", strings.Repeat("b", 4000))
			for range 20 { // indexed: small on the wire
				block = append(block, a.headers("a", strings.Repeat("b", 4000))...)
			}
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		}, status("431"), ""},

		{"no HTTP/2", func(a *attacker) { io.WriteString(a.nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n......") }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"frame before SETTINGS", func(a *attacker) { io.WriteString(a.nc, http2.ClientPreface); a.connect(1) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"SETTINGS acknowledged first", func(a *attacker) { io.WriteString(a.nc, http2.ClientPreface); a.WriteSettingsAck() }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"SETTINGS with bad window", func(a *attacker) { a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, goAway(http2.ErrCodeFlowControl), CauseProtocol},
		{"SETTINGS of odd length", func(a *attacker) { frame(a, http2.FrameSettings, 0, 0, data[:5]) }, goAway(http2.ErrCodeFrameSize), CauseFrameSize},
		{"SETTINGS overflow a stream", func(a *attacker) {
			a.connect(1)
			a.WriteWindowUpdate(1, 1<<31-1-65535)
			a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 70000})
		}, verdict{goAway: http2.ErrCodeFlowControl, reset: none, status: "200"}, CauseFlowControl},
		{"PUSH_PROMISE", func(a *attacker) { frame(a, http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, data[:8]) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"oversized DATA", func(a *attacker) { a.connect(1); a.nc.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}) }, verdict{http2.ErrCodeFrameSize, none, "200"}, CauseFrameSize},
		{"oversized HEADERS", func(a *attacker) { frame(a, http2.FrameHeaders, 0, 1, make([]byte, maxControlFrame+1)) }, goAway(http2.ErrCodeFrameSize), CauseFrameSize},
		{"PING of 7 bytes", func(a *attacker) { frame(a, http2.FramePing, 0, 0, data[:7]) }, goAway(http2.ErrCodeFrameSize), CauseFrameSize},
		{"garbage for HPACK", func(a *attacker) {
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, goAway(http2.ErrCodeCompression), CauseCompression},
		{"even stream", func(a *attacker) { a.connect(2) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"stream 0", func(a *attacker) { a.connect(0) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"HEADERS twice", func(a *attacker) { a.connect(1); a.connect(1) }, verdict{none, http2.ErrCodeProtocol, "200"}, ""},
		{"CONTINUATION alone", func(a *attacker) { a.WriteContinuation(1, true, nil) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"DATA amid headers", func(a *attacker) {
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.headers(":method", "CONNECT")})
			a.WriteData(1, false, data[:1])
		}, goAway(http2.ErrCodeProtocol), CauseProtocol},

		{"DATA on stream 0", func(a *attacker) { a.WriteData(0, false, data[:1]) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"DATA on an idle stream", func(a *attacker) { a.WriteData(1, false, data[:1]) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"DATA after END_STREAM", func(a *attacker) { a.connect(1); a.WriteData(1, true, nil); a.WriteData(1, false, data[:1]) }, verdict{none, http2.ErrCodeStreamClosed, "200"}, ""},
		{"padding longer than the frame", func(a *attacker) {
			a.connect(1)
			frame(a, http2.FrameData, http2.FlagDataPadded, 1, []byte{200, 1, 2})
		}, verdict{http2.ErrCodeProtocol, none, "200"}, CauseProtocol},
		{"more than the stream's window", func(a *attacker) {
			a.connect(1, "hold", "yes")
			for range 5 {
				a.WriteData(1, false, data)
			}
		}, verdict{none, http2.ErrCodeFlowControl, "200"}, ""},
		{"DATA on its way when the stream was reset", func(a *attacker) {
			a.connect(1, "reset", "yes")
			for range 3000 { // none of it is the client's fault
				a.WriteData(1, false, data[:20])
			}
		}, verdict{none, http2.ErrCodeCancel, "200"}, ""},
		{"WINDOW_UPDATE of 0", func(a *attacker) { a.connect(1); frame(a, http2.FrameWindowUpdate, 0, 1, make([]byte, 4)) }, verdict{none, http2.ErrCodeProtocol, "200"}, ""},
		{"WINDOW_UPDATE of 0 for all", func(a *attacker) { frame(a, http2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"WINDOW_UPDATE overflows a stream", func(a *attacker) { a.connect(1); a.WriteWindowUpdate(1, 1<<31-1) }, verdict{none, http2.ErrCodeFlowControl, "200"}, ""},
		{"WINDOW_UPDATE overflows the connection", func(a *attacker) { a.WriteWindowUpdate(0, 1<<31-1) }, goAway(http2.ErrCodeFlowControl), CauseFlowControl},
		{"WINDOW_UPDATE on an idle stream", func(a *attacker) { a.WriteWindowUpdate(1, 1) }, goAway(http2.ErrCodeProtocol), CauseProtocol},
		{"RST_STREAM on an idle stream", func(a *attacker) { a.WriteRSTStream(1, 0) }, goAway(http2.ErrCodeProtocol), CauseProtocol},

		{"CONTINUATION without end", func(a *attacker) {
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.headers(":method", "CONNECT")})
			repeat(func() error { return a.WriteContinuation(1, false, nil) })
		}, goAway(http2.ErrCodeEnhanceYourCalm), CauseHeaderFlood},
		{"header block without end", func(a *attacker) {
			a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.headers(":method", "CONNECT")})
			repeat(func() error { return a.WriteContinuation(1, false, data) })
		}, goAway(http2.ErrCodeEnhanceYourCalm), CauseHeaderFlood},
		{"rapid reset", func(a *attacker) {
			id := uint32(1)
			repeat(func() error {
				a.connect(id, "wait", "yes")
				id += 2
				return a.WriteRSTStream(id-2, http2.ErrCodeCancel)
			})
		}, goAway(http2.ErrCodeEnhanceYourCalm), CauseRapidReset},
		{"PING flood", func(a *attacker) { repeat(func() error { return a.WritePing(false, [8]byte{}) }) }, goAway(http2.ErrCodeEnhanceYourCalm), CauseControlFlood},
		{"SETTINGS flood", func(a *attacker) { repeat(func() error { return a.WriteSettings() }) }, goAway(http2.ErrCodeEnhanceYourCalm), CauseControlFlood},
		{"PRIORITY flood", func(a *attacker) {
			repeat(func() error { return a.WritePriority(1, http2.PriorityParam{StreamDep: 3}) })
		}, goAway(http2.ErrCodeEnhanceYourCalm), CauseControlFlood},
		{"flood of unknown frames", func(a *attacker) { repeat(func() error { return a.WriteRawFrame(0xbe, 0, 0, nil) }) }, goAway(http2.ErrCodeEnhanceYourCalm), CauseControlFlood},
		{"flood of empty DATA", func(a *attacker) {
			a.connect(1)
			repeat(func() error { return a.WriteData(1, false, nil) })
		}, verdict{http2.ErrCodeEnhanceYourCalm, none, "200"}, CauseControlFlood},
		{"flood of WINDOW_UPDATE", func(a *attacker) { repeat(func() error { return a.WriteWindowUpdate(0, 1) }) }, goAway(http2.ErrCodeEnhanceYourCalm), CauseControlFlood},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			target := application(t, echo)
			w := newWorld(t, func(ctx context.Context, s *ServerStream) {
				switch {
				case s.Header("wait") != "":
					<-ctx.Done()
				case s.Header("reset") != "":
					s.Accept()
					s.Reset()
				case s.Header("hold") != "":
					s.Accept()
					<-ctx.Done()
				default:
					forward(target)(ctx, s)
				}
			})
			a := newAttacker(t, w)
			first := strings.HasPrefix(c.name, "no HTTP/2") || strings.Contains(c.name, "before SETTINGS") || strings.HasSuffix(c.name, "acknowledged first")
			if !first {
				a.greet()
			}
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				c.send(a)
			}()
			got := a.read()
			if got.status != "" && c.want.status == "" {
				got.status = "" // an answer may come first or not
			}
			if c.want.status == "200" {
				got.status = "200"
			}
			if got != c.want {
				t.Errorf("answered %+v, want %+v", got, c.want)
			}
			if c.cause == "" {
				<-sent
				a.expectAlive(t)
			}
			a.nc.Close()
			<-sent
			if end := within(t, w.ended); c.cause != "" && end.Cause != c.cause {
				t.Errorf("connection ended by %v, want %s", end, c.cause)
			}
		})
	}
}

// repeat sends until the server has had enough.
func repeat(send func() error) {
	for range 100_000 {
		if send() != nil {
			return
		}
	}
}

// A peer that says nothing after the handshake is cut.
func TestSlowPreface(t *testing.T) {
	w := newWorld(t, hold, worldOptions{server: ServerConfig{timing: timing{tick: 20 * time.Millisecond, settle: 20 * time.Millisecond, ping: time.Minute, idle: time.Minute}}})
	a := newAttacker(t, w)
	io.WriteString(a.nc, http2.ClientPreface[:10])
	if end := within(t, w.ended); end.Cause != CauseSlowHandshake {
		t.Errorf("connection ended by %v", end)
	}
}
