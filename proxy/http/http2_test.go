package http

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestRequestsOfHTTP2(t *testing.T) {
	gate := newGate(denyPaths)
	to := proxied(t, server(t, describe), Undeclared, gate)
	client := client2(t)
	for i := range 20 {
		response, err := client.Post(fmt.Sprintf("http://%v/a%d", to, i), "text/plain", strings.NewReader("abc"))
		must(t, err)
		body, err := io.ReadAll(response.Body)
		must(t, err)
		_ = response.Body.Close()
		if want := fmt.Sprintf(`POST %v /a%d "abc" map[]`, to, i); string(body) != want || response.ProtoMajor != 2 || response.Trailer.Get("Checksum") != "42" {
			t.Errorf("%v %q %v, want %q", response.Proto, body, response.Trailer, want)
		}
		response, err = client.Post(fmt.Sprintf("http://%v/deny%d", to, i), "text/plain", strings.NewReader("abc"))
		must(t, err)
		if response.StatusCode != 403 || response.Header.Get(idField) == "" {
			t.Errorf("%v %v", response.Status, response.Header)
		}
		_ = response.Body.Close()
	}
	for range 40 {
		within(t, gate.ended)
	}
	for _, r := range gate.results {
		if r.Err != nil || r.Status != 200 && r.Status != 403 {
			t.Errorf("%+v", r)
		}
	}
}

// Large bodies pass in both directions at once, on several streams, also past
// streams that are denied while they send.
func TestBulkOfHTTP2(t *testing.T) {
	gate := newGate(denyPaths)
	to := proxied(t, server(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}), Undeclared, gate)
	client := client2(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	failed := make(chan error)
	for i := range 8 {
		go func() {
			path := "/a"
			if i%2 == 0 {
				path = "/deny"
			}
			response, err := client.Post(fmt.Sprintf("http://%v%s", to, path), "text/plain", bytes.NewReader(data))
			if err != nil {
				failed <- err
				return
			}
			got, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err == nil && i%2 != 0 && !bytes.Equal(got, data) {
				err = fmt.Errorf("%d bytes came back", len(got))
			}
			failed <- err
		}()
	}
	for range 8 {
		if err := within(t, failed); err != nil {
			t.Error(err)
		}
	}
}

// A long upload calls for any number of WINDOW_UPDATEs, which are no flood.
func TestLongUploadOfHTTP2(t *testing.T) {
	to := proxied(t, server(t, func(_ http.ResponseWriter, r *http.Request) {
		part := make([]byte, 4<<10) // as few as net/http tells the client of
		for err := error(nil); err == nil; {
			_, err = r.Body.Read(part)
		}
	}), Undeclared, newGate(allowAll))
	response, err := client2(t).Post(fmt.Sprintf("http://%v/a", to), "text/plain", io.LimitReader(endless{}, 48<<20))
	must(t, err)
	must(t, response.Body.Close())
}

// endless is a body of zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A body that comes before its decision waits for it, within bounds.
func TestDecisionsThatTakeTime(t *testing.T) {
	gate := newGate(denyPaths)
	gate.slow = make(chan struct{})
	to := proxied(t, server(t, describe), Undeclared, gate)
	client := client2(t)
	answers := make(chan string)
	for _, path := range []string{"/a", "/deny"} {
		go func() {
			response, err := client.Post(fmt.Sprintf("http://%v%s", to, path), "text/plain", strings.NewReader(strings.Repeat("x", 60<<10)))
			if err != nil {
				answers <- err.Error()
				return
			}
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			answers <- fmt.Sprint(response.StatusCode, " ", len(body))
		}()
	}
	within(t, gate.begun)
	within(t, gate.begun)
	close(gate.slow)
	got := map[string]bool{within(t, answers): true, within(t, answers): true}
	if !got["403 0"] || len(got) != 2 {
		t.Errorf("%v", got)
	}
}

// frames is a client of HTTP/2 that says what it likes.
type frames struct {
	t testing.TB
	net.Conn
	*http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
}

func dialFrames(t testing.TB, to net.Addr) *frames {
	t.Helper()
	c, _ := dial(t, to)
	f := &frames{t: t, Conn: c, Framer: http2.NewFramer(c, c)}
	f.encoder = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	say(t, c, http2.ClientPreface)
	must(t, f.WriteSettings())
	return f
}

func (f *frames) open(id uint32, end bool, fields ...string) {
	f.t.Helper()
	f.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		must(f.t, f.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	must(f.t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: end}))
}

// next is the next frame that concerns a stream, or GOAWAY.
func (f *frames) next() http2.Frame {
	f.t.Helper()
	for {
		frame, err := f.ReadFrame()
		must(f.t, err)
		switch frame.(type) {
		case *http2.SettingsFrame, *http2.WindowUpdateFrame, *http2.PingFrame:
		default:
			return frame
		}
	}
}

// Requests that mean different things to different parsers are reset, without
// a decision, and others on the same connection go on.
func TestMalformedHTTP2(t *testing.T) {
	gate := newGate(allowAll)
	to := proxied(t, server(t, describe), Undeclared, gate)
	ok := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x"}
	with := func(fields ...string) []string { return append(append([]string(nil), ok...), fields...) }
	tests := []struct {
		name   string
		end    bool
		fields []string
	}{
		{"no method", true, ok[2:]},
		{"no path", true, []string{":method", "GET", ":scheme", "http", ":authority", "x"}},
		{"empty path", true, []string{":method", "GET", ":scheme", "http", ":path", "", ":authority", "x"}},
		{"path without a slash", true, []string{":method", "GET", ":scheme", "http", ":path", "a", ":authority", "x"}},
		{"space in the path", true, []string{":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1", ":authority", "x"}},
		{"fragment", true, []string{":method", "GET", ":scheme", "http", ":path", "/a#b", ":authority", "x"}},
		{"two paths", true, append([]string{":path", "/b"}, ok...)},
		{"two methods", true, append([]string{":method", "PUT"}, ok...)},
		{"unknown pseudo header", true, append([]string{":x", "y"}, ok...)},
		{"pseudo header behind others", true, with("a", "b", ":path", "/b")},
		{"method in lower case", true, append([]string{":method", "get"}, ok[2:]...)},
		{"method with a line", true, append([]string{":method", "GET / HTTP/1.1\r\nx:"}, ok[2:]...)},
		{"scheme", true, []string{":method", "GET", ":scheme", "file", ":path", "/", ":authority", "x"}},
		{"no authority", true, []string{":method", "GET", ":scheme", "http", ":path", "/"}},
		{"authority with a user", true, []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a@x"}},
		{"another host", true, with("host", "y")},
		{"a port in the host alone", true, with("host", "x:80")},
		{"two hosts", true, with("host", "x", "host", "x")},
		{"upper case", true, with("A", "b")},
		{"space in a name", true, with("a b", "c")},
		{"colon in a name", true, with("a:b", "c")},
		{"CR LF in a value", true, with("a", "b\r\nhost: y")},
		{"LF in a value", true, with("a", "b\nc")},
		{"NUL in a value", true, with("a", "b\x00")},
		{"space around a value", true, with("a", " b")},
		{"connection", true, with("connection", "close")},
		{"transfer-encoding", false, with("transfer-encoding", "chunked")},
		{"upgrade", true, with("upgrade", "h2c")},
		{"te", true, with("te", "gzip")},
		{"two lengths", false, with("content-length", "1", "content-length", "1")},
		{"length that is none", false, with("content-length", "+1")},
		{"length without a body", true, with("content-length", "1")},
		{"extended CONNECT", false, []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "x"}},
		{"CONNECT with a path", false, []string{":method", "CONNECT", ":path", "/", ":authority", "x:1"}},
	}
	f := dialFrames(t, to)
	id := uint32(1)
	for _, test := range tests {
		f.open(id, test.end, test.fields...)
		reset, isReset := f.next().(*http2.RSTStreamFrame)
		if !isReset || reset.StreamID != id || reset.ErrCode != http2.ErrCodeProtocol {
			t.Errorf("%s: %v, want RST_STREAM", test.name, reset)
		}
		id += 2
	}
	if n := len(gate.seen()); n != 0 {
		t.Errorf("%d of them were decided on", n)
	}
	f.open(id, true, ok...)
	if h, isHeaders := f.next().(*http2.MetaHeadersFrame); !isHeaders || h.PseudoValue("status") != "200" {
		t.Errorf("the one in order: %v", h)
	}
}

// A body of another length than declared never reaches the application whole.
func TestLengthOfHTTP2(t *testing.T) {
	whole := make(chan error, 10)
	to := proxied(t, server(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		whole <- err
	}), Undeclared, newGate(allowAll))
	for _, body := range []string{"ab", "abcd"} {
		f := dialFrames(t, to)
		f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x", "content-length", "3")
		must(t, f.WriteData(1, true, []byte(body)))
		if reset, ok := f.next().(*http2.RSTStreamFrame); !ok || reset.ErrCode != http2.ErrCodeProtocol {
			t.Errorf("%q: %v", body, reset)
		}
		if err := within(t, whole); err == nil {
			t.Errorf("%q: the application took it", body)
		}
	}
}

// gRPC is denied in its own terms.
func TestDenialOfGRPC(t *testing.T) {
	f := dialFrames(t, proxied(t, server(t, describe), Undeclared, newGate(denyPaths)))
	f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/deny", ":authority", "x", "content-type", "application/grpc", "te", "trailers")
	h, ok := f.next().(*http2.MetaHeadersFrame)
	if !ok || !h.StreamEnded() || h.PseudoValue("status") != "200" {
		t.Fatalf("%v", h)
	}
	for _, field := range h.RegularFields() {
		if field.Name == "grpc-status" && field.Value == "7" {
			return
		}
	}
	t.Errorf("no status: %v", h.Fields)
}

// An exchange that is no longer allowed is reset; others go on.
func TestAbortOfHTTP2(t *testing.T) {
	gate := newGate(allowAll)
	to := proxied(t, server(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}), Undeclared, gate)
	f := dialFrames(t, to)
	for id := uint32(1); id <= 3; id += 2 {
		f.open(id, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x")
		if h, ok := f.next().(*http2.MetaHeadersFrame); !ok || h.StreamID != id {
			t.Fatalf("%v", h)
		}
	}
	gate.mu.Lock()
	live := gate.live[0]
	gate.mu.Unlock()
	live.Abort()
	reset, ok := f.next().(*http2.RSTStreamFrame)
	if !ok || reset.StreamID != 1 || reset.ErrCode != http2.ErrCodeInadequateSecurity {
		t.Errorf("%v", reset)
	}
	within(t, gate.ended)
	must(t, f.WriteRSTStream(3, http2.ErrCodeCancel))
	if result := within(t, gate.ended); result.Status != 200 {
		t.Errorf("%+v", result)
	}
}

// Floods end the connection with the reason.
func TestFloodsOfHTTP2(t *testing.T) {
	to := proxied(t, server(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), Undeclared, newGate(allowAll))
	floods := map[string]func(*frames){
		"RST_STREAM": func(f *frames) {
			for id := uint32(1); id < 10000; id += 2 {
				f.open(id, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x")
				if f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return
				}
			}
		},
		"SETTINGS": func(f *frames) {
			for range 50000 {
				if f.WriteSettings() != nil {
					return
				}
			}
		},
		"CONTINUATION": func(f *frames) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: nil})
			for range 50 {
				if f.WriteContinuation(1, false, nil) != nil {
					return
				}
			}
		},
	}
	for name, flood := range floods {
		t.Run(name, func(t *testing.T) {
			f := dialFrames(t, to)
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = recover() }()
				flood(&frames{t: quiet{t}, Conn: f.Conn, Framer: f.Framer, encoder: hpack.NewEncoder(&f.block)})
			}()
			for {
				frame, err := f.ReadFrame()
				if err != nil {
					t.Fatalf("ended without GOAWAY: %v", err)
				}
				if away, ok := frame.(*http2.GoAwayFrame); ok {
					if away.ErrCode != http2.ErrCodeEnhanceYourCalm {
						t.Errorf("%v", away.ErrCode)
					}
					break
				}
			}
			_ = f.Close()
			<-done
		})
	}
}

// quiet is a test to which a failed write is no failure.
type quiet struct{ testing.TB }

func (quiet) Helper()      {}
func (quiet) Fatal(...any) { panic("a write failed") }
