package http

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// sum tells what came of a request: how long its body is, its hash, and its
// trailers.
func sum(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	fmt.Fprintf(w, "%d %x %v %v", n, hash.Sum(nil), r.Trailer.Get("x-end"), err)
}

func sumOf(body []byte, trailer string) string {
	return fmt.Sprintf("%d %x %v %v", len(body), sha256.Sum256(body), trailer, nil)
}

// narrow is server with windows of HTTP/2 of a few bytes for a stream, and of
// the least that there may be for the connection.
func narrow(t testing.TB, handler http.HandlerFunc, stream int) net.Addr {
	t.Helper()
	l := listen(t)
	s := &http.Server{
		Handler: handler, Protocols: new(http.Protocols), ReadHeaderTimeout: patience,
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: stream},
	}
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr()
}

// greet waits for the windows of an application: Go's server wants them kept
// before it has told them.
func greet(t testing.TB, client *http.Client, to net.Addr) {
	t.Helper()
	answer, err := client.Get(fmt.Sprintf("http://%v/a", to))
	must(t, err)
	must(t, answer.Body.Close())
}

// Decisions see the beginning of a body that they want to, however it is
// framed, and the application gets all of it.
func TestDecisionsSeeBodies(t *testing.T) {
	long := strings.Repeat("0123456789", 5000)
	tests := []struct {
		name, request, want string
		whole               bool
		body, trailer       string
	}{
		{"length", "Content-Length: 5\r\n\r\nhello", "hello", true, "hello", ""},
		{"empty", "Content-Length: 0\r\n\r\n", "", true, "", ""},
		{"chunked", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n", "hello", true, "hello", ""},
		{"trailers", "Transfer-Encoding: chunked\r\nTrailer: x-end\r\n\r\n5\r\nhello\r\n0\r\nx-end: 1\r\n\r\n", "hello", true, "hello", "1"},
		{"limit", "Content-Length: 10\r\n\r\n0123456789", "0123456789", true, "0123456789", ""},
		{"long", "Content-Length: 50000\r\n\r\n" + long, "0123456789", false, long, ""},
		{"long and chunked", "Transfer-Encoding: chunked\r\n\r\nc350\r\n" + long + "\r\n0\r\n\r\n", "0123456789", false, long, ""},
	}
	gate := newGate(denyPaths)
	seen := make(chan Content, 1)
	gate.wants, gate.see = 10, func(c Content) { seen <- c }
	to := proxied(t, server(t, sum), Undeclared, gate)
	c, r := dial(t, to)
	for _, test := range tests {
		for _, path := range []string{"/a", "/deny"} {
			say(t, c, "POST "+path+" HTTP/1.1\r\nHost: x\r\n"+test.request)
			if got := within(t, seen); string(got.Bytes) != test.want || got.Whole != test.whole {
				t.Errorf("%s: %q %v, want %q %v", test.name, got.Bytes, got.Whole, test.want, test.whole)
			}
			answer, err := http.ReadResponse(r, nil)
			must(t, err)
			body, err := io.ReadAll(answer.Body)
			must(t, err)
			must(t, answer.Body.Close())
			switch {
			case path == "/a" && string(body) != sumOf([]byte(test.body), test.trailer):
				t.Errorf("%s: the application got %q", test.name, body)
			case path == "/deny" && (answer.StatusCode != 403 || answer.Close && test.whole):
				t.Errorf("%s: denied with %v, closed %v", test.name, answer.Status, answer.Close)
			}
			if answer.Close {
				c, r = dial(t, to)
			}
		}
	}
}

// A client that waits to be asked for its body is.
func TestBodiesAreAskedFor(t *testing.T) {
	gate := newGate(allowAll)
	gate.wants = 10
	to := proxied(t, server(t, sum), Undeclared, gate)
	c, r := dial(t, to)
	say(t, c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	for {
		line, err := r.ReadString('\n')
		must(t, err)
		if line == "\r\n" {
			break
		}
		if !strings.HasPrefix(line, "HTTP/1.1 100") {
			t.Fatalf("%q", line)
		}
	}
	say(t, c, "hello")
	answer, err := http.ReadResponse(r, nil) //nolint:bodyclose // of no connection of net/http
	must(t, err)
	if answer.StatusCode == 100 { // the application's own
		answer, err = http.ReadResponse(r, nil) //nolint:bodyclose // of no connection of net/http
		must(t, err)
	}
	body, err := io.ReadAll(answer.Body)
	must(t, err)
	if string(body) != sumOf([]byte("hello"), "") {
		t.Errorf("%q", body)
	}

	f := dialFrames(t, to)
	f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x", "expect", "100-continue")
	if h, ok := f.next().(*http2.MetaHeadersFrame); !ok || h.PseudoValue("status") != "100" {
		t.Fatalf("%v", h)
	}
	must(t, f.WriteData(1, true, []byte("hello")))
	for {
		h, ok := f.next().(*http2.MetaHeadersFrame)
		if !ok {
			t.Fatal("no answer")
		}
		if h.PseudoValue("status") == "200" {
			return
		}
	}
}

// While a decision about one stream takes time, and its client has sent all
// that it may, the others of the connection go on, with bodies larger than any
// window, to applications of wide windows and narrow ones.
func TestOtherStreamsGoOn(t *testing.T) {
	for name, app := range map[string]net.Addr{"wide": server(t, sum), "narrow": narrow(t, sum, 4<<10)} {
		t.Run(name, func(t *testing.T) {
			gate := newGate(denyPaths)
			gate.slow, gate.slowPath = make(chan struct{}), "/slow"
			client := client2(t)
			to := proxied(t, app, Undeclared, gate)
			body := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
			type outcome struct {
				what, err string
			}
			post := func(path string, into chan<- outcome) {
				answer, err := client.Post(fmt.Sprintf("http://%v%s", to, path), "text/plain", bytes.NewReader(body))
				if err != nil {
					into <- outcome{"", err.Error()}
					return
				}
				text, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				into <- outcome{string(text), fmt.Sprint(err)}
			}
			greet(t, client, to)
			within(t, gate.begun)
			slow, quick := make(chan outcome, 3), make(chan outcome, 100)
			for range cap(slow) {
				go post("/slow", slow)
				within(t, gate.begun)
			}
			for range 20 {
				go post("/quick", quick)
			}
			want := outcome{sumOf(body, ""), "<nil>"}
			for range 20 {
				if got := within(t, quick); got != want {
					t.Errorf("beside one that is decided on: %v", got)
				}
			}
			if len(slow) > 0 {
				t.Error("not decided on, and answered")
			}
			close(gate.slow)
			for range cap(slow) {
				if got := within(t, slow); got != want {
					t.Errorf("decided on in the end: %v", got)
				}
			}
		})
	}
}

// However much of other bodies waits for decisions, the other streams of the
// connection go on.
func TestManyBodiesWait(t *testing.T) {
	const waiting = 200 // Go's server takes 250 streams of a connection
	gate := newGate(denyPaths)
	gate.slow, gate.slowPath = make(chan struct{}), "/slow"
	client := client2(t)
	to := proxied(t, server(t, sum), Undeclared, gate)
	body := make([]byte, 3*undecided)
	post := func(path string) error {
		answer, err := client.Post(fmt.Sprintf("http://%v%s", to, path), "text/plain", bytes.NewReader(body))
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if want := sumOf(body, ""); err == nil && string(text) != want {
			err = fmt.Errorf("%q, want %q", text, want)
		}
		return err
	}
	must(t, post("/quick"))
	slow := make(chan error, waiting)
	for range waiting {
		go func() { slow <- post("/slow") }()
	}
	held(t, gate, waiting*undecided)
	for range 20 {
		must(t, post("/quick"))
	}
	close(gate.slow)
	for range waiting {
		if err := within(t, slow); err != nil {
			t.Error(err)
		}
	}
	freed(t, gate)
}

// Where there is no room for a body that comes while its request is decided on,
// that request is refused, and no other.
func TestNoRoomMeanwhile(t *testing.T) {
	gate := newGate(allowAll)
	gate.slow, gate.slowPath, gate.room = make(chan struct{}), "/slow", 50<<10
	f := dialFrames(t, proxied(t, server(t, sum), Undeclared, gate))
	open := func(id uint32, size int, more ...string) {
		f.open(id, false, append([]string{":method", "POST", ":scheme", "http", ":path", "/slow", ":authority", "x"}, more...)...)
		must(t, f.WriteData(id, true, make([]byte, size)))
	}
	open(1, 16<<10)
	open(3, 16<<10)
	open(5, 16<<10)
	open(7, 16<<10)
	if h, ok := f.next().(*http2.MetaHeadersFrame); !ok || h.StreamID != 7 || h.PseudoValue("status") != "503" {
		t.Errorf("%v, want 503 of stream 7", h)
	}
	open(9, 16<<10, "content-type", "application/grpc")
	if h, ok := f.next().(*http2.MetaHeadersFrame); !ok || h.StreamID != 9 || !slices.ContainsFunc(h.Fields, func(field hpack.HeaderField) bool {
		return field.Name == "grpc-status" && field.Value == "8"
	}) {
		t.Errorf("%v, want RESOURCE_EXHAUSTED of stream 9", h)
	}
	close(gate.slow)
	answers := map[uint32]string{}
	for len(answers) < 3 {
		if h, ok := f.next().(*http2.MetaHeadersFrame); ok {
			answers[h.StreamID] = h.PseudoValue("status")
		}
	}
	if want := map[uint32]string{1: "200", 3: "200", 5: "200"}; !maps.Equal(answers, want) {
		t.Errorf("%v, want %v", answers, want)
	}
	freed(t, gate)
}

// Bodies arrive as they were sent whatever the order of decisions, resets,
// denials and windows is.
func TestHeldBodiesArriveWhole(t *testing.T) {
	for _, window := range []int{1, 1000, 16 << 10, 70 << 10} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			gate := newGate(denyPaths)
			gate.slow, gate.wants = make(chan struct{}), 100<<10
			feed := make(chan struct{})
			go func() { // in no order
				for {
					select {
					case gate.slow <- struct{}{}:
					case <-feed:
						close(gate.slow)
						return
					}
				}
			}()
			defer close(feed)
			client := client2(t)
			to := proxied(t, narrow(t, sum, window), Undeclared, gate)
			greet(t, client, to)
			var all sync.WaitGroup
			for i := range 60 {
				all.Go(func() {
					size := rand.N(1 << uint(rand.N(10)))
					if window > 1 {
						size = rand.N(1 << uint(rand.N(19)))
					}
					body := bytes.Repeat([]byte{byte(i)}, size)
					path, want := "/a", sumOf(body, "end")
					if i%7 == 0 {
						path, want = "/deny", ""
					}
					// Of a type that the client does not know the length of.
					r, _ := http.NewRequest(http.MethodPost, fmt.Sprintf("http://%v%s", to, path), io.MultiReader(bytes.NewReader(body)))
					r.Trailer = http.Header{"X-End": {"end"}}
					answer, err := client.Do(r)
					if err != nil {
						t.Errorf("%d bytes to %s: %v", size, path, err)
						return
					}
					text, err := io.ReadAll(answer.Body)
					_ = answer.Body.Close()
					if err != nil || string(text) != want {
						t.Errorf("%d bytes to %s: %q, %v", size, path, text, err)
					}
				})
			}
			all.Wait()
			freed(t, gate)
		})
	}
}

// A client that sends more than its windows is stopped.
func TestWindowsOfHTTP2(t *testing.T) {
	gate := newGate(allowAll)
	gate.slow = make(chan struct{})
	defer close(gate.slow)
	to := proxied(t, server(t, sum), Undeclared, gate)
	f := dialFrames(t, to)
	f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x")
	part := make([]byte, 16<<10)
	for range 5 {
		must(t, f.WriteData(1, false, part))
	}
	if reset, ok := f.next().(*http2.RSTStreamFrame); !ok || reset.ErrCode != http2.ErrCodeFlowControl {
		t.Errorf("%v", reset)
	}
}

// What a client is lent around decisions is paid back: in the end it was granted
// no more than it has sent.
func TestWindowsArePaidBack(t *testing.T) {
	gate := newGate(allowAll)
	gate.slow, gate.slowPath = make(chan struct{}), "/slow"
	f := dialFrames(t, proxied(t, narrow(t, sum, 32<<10), Undeclared, gate))
	f.open(1, true, ":method", "GET", ":scheme", "http", ":path", "/a", ":authority", "x")
	awaitEnd(t, f, 1)
	granted, sent := 0, 0
	part := make([]byte, 10_000)
	for id := uint32(3); id < 43; id += 2 {
		f.open(id, false, ":method", "POST", ":scheme", "http", ":path", "/slow", ":authority", "x")
		must(t, f.WriteData(id, true, part))
		sent += len(part)
		for ended, before := false, granted; !ended; {
			frame, err := f.ReadFrame()
			must(t, err)
			switch frame := frame.(type) {
			case *http2.WindowUpdateFrame:
				if frame.StreamID != 0 {
					continue
				}
				if granted += int(frame.Increment); before >= 0 && granted-before >= len(part) {
					before = -1 // lent
					gate.slow <- struct{}{}
				}
			case *http2.DataFrame:
				ended = frame.StreamEnded()
			}
		}
	}
	if granted > sent+1<<10 {
		t.Errorf("%d bytes were granted for %d", granted, sent)
	}
}

// A request that is no longer allowed before its body is waited for ends there.
func TestAbortInFrontOfBody(t *testing.T) {
	gate := newGate(allowAll)
	gate.wants, gate.abort = 10, true
	f := dialFrames(t, proxied(t, server(t, sum), Undeclared, gate))
	f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x")
	if result := within(t, gate.ended); !errors.Is(result.Err, errRevoked) {
		t.Errorf("%v", result.Err)
	}
	if reset, ok := f.next().(*http2.RSTStreamFrame); !ok || reset.ErrCode != http2.ErrCodeInadequateSecurity {
		t.Errorf("%v", reset)
	}
}

// An application that leaves what was decided on unread does not make us keep
// without end what clients go on sending: the connection ends.
func TestUnreadBodiesAreBounded(t *testing.T) {
	gate := newGate(allowAll)
	gate.wants = 1 << 20
	stalled := make(chan struct{})
	defer close(stalled)
	app := narrow(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/a" {
			<-stalled
		}
	}, 4<<10)
	client := client2(t)
	to := proxied(t, app, Undeclared, gate)
	greet(t, client, to)
	const uploads = 3 * maxLent >> 20
	ended := make(chan error, uploads)
	for range uploads {
		go func() {
			answer, err := client.Post(fmt.Sprintf("http://%v/", to), "text/plain", bytes.NewReader(make([]byte, 1<<20)))
			if err == nil {
				err = answer.Body.Close()
			}
			ended <- err
		}()
	}
	if err := within(t, ended); err == nil {
		t.Error("an upload that nobody reads is answered")
	}
	freed(t, gate)
}

// Bodies are held as they come and until they have left: a request for whose
// body there is no room is refused, and what is held is known at any time.
func TestRoomForBodies(t *testing.T) {
	for version := 1; version <= 2; version++ {
		t.Run(fmt.Sprint("HTTP/", version), func(t *testing.T) {
			gate := newGate(allowAll)
			gate.wants, gate.room = 100<<10, 50<<10
			to := proxied(t, server(t, sum), Undeclared, gate)
			client := &http.Client{Timeout: 3 * patience}
			if version == 2 {
				client = client2(t)
			}
			defer client.CloseIdleConnections()
			for _, test := range []struct{ size, status int }{{20 << 10, 200}, {60 << 10, 503}, {20 << 10, 200}} {
				for framing, body := range map[string]io.Reader{
					"length": bytes.NewReader(make([]byte, test.size)), "chunks": io.MultiReader(bytes.NewReader(make([]byte, test.size))),
				} {
					answer, err := client.Post(fmt.Sprintf("http://%v/", to), "text/plain", body)
					must(t, err)
					text, err := io.ReadAll(answer.Body)
					must(t, err)
					must(t, answer.Body.Close())
					if answer.StatusCode != test.status || test.status == 200 && string(text) != sumOf(make([]byte, test.size), "") {
						t.Errorf("%d bytes by %s: %s %q", test.size, framing, answer.Status, text)
					}
				}
			}
			freed(t, gate)
		})
	}
}

// A client that resets its request gets the room for its body back when nobody
// looks at that any more: a decision under way does.
func TestRoomOfResetRequests(t *testing.T) {
	gate := newGate(allowAll)
	seen := make(chan Content, 1)
	gate.wants, gate.see = 10, func(c Content) { seen <- c }
	gate.slow, gate.slowPath = make(chan struct{}), "/slow"
	decide := sync.OnceFunc(func() { close(gate.slow) })
	defer decide()
	f := dialFrames(t, proxied(t, server(t, sum), Undeclared, gate))
	f.open(1, false, ":method", "POST", ":scheme", "http", ":path", "/slow", ":authority", "x")
	must(t, f.WriteData(1, false, []byte("0123456789")))
	within(t, seen)
	must(t, f.WriteRSTStream(1, http2.ErrCodeCancel))
	f.open(3, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x")
	if answer, ok := f.next().(*http2.MetaHeadersFrame); !ok || answer.StreamID != 3 {
		t.Fatalf("%v", answer)
	}
	if held := gate.held.Load(); held != 10 {
		t.Errorf("%d bytes count as held while a decision looks at 10", held)
	}
	decide()
	freed(t, gate)
}

// freed waits until nothing is held.
func freed(t *testing.T, gate *testGate) {
	t.Helper()
	held(t, gate, 0)
}

// held waits until so many bytes are.
func held(t *testing.T, gate *testGate, n int64) {
	t.Helper()
	retry := time.NewTicker(time.Millisecond)
	defer retry.Stop()
	for end := time.Now().Add(patience); gate.held.Load() != n; <-retry.C {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are held, not %d", gate.held.Load(), n)
		}
	}
}
