package http

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tap forwards connections to an address and keeps what the clients said, one
// after the other.
type tap struct {
	net.Addr
	mu   sync.Mutex
	said []*bytes.Buffer
}

func tapped(t testing.TB, to net.Addr) *tap {
	t.Helper()
	p := &tap{}
	p.Addr = raw(t, func(c *net.TCPConn) {
		server, err := net.Dial("tcp", to.String())
		if err != nil {
			return
		}
		defer func() { _ = server.Close() }()
		said := new(bytes.Buffer)
		p.mu.Lock()
		p.said = append(p.said, said)
		p.mu.Unlock()
		var back sync.WaitGroup
		back.Go(func() {
			_, _ = io.Copy(c, server)
			_ = c.CloseWrite()
		})
		buf := make([]byte, 32<<10)
		for {
			n, err := c.Read(buf)
			p.mu.Lock()
			said.Write(buf[:n])
			p.mu.Unlock()
			if _, failed := server.Write(buf[:n]); failed != nil || err != nil {
				break
			}
		}
		_ = server.(*net.TCPConn).CloseWrite()
		back.Wait()
	})
	return p
}

// last is what the last client has said so far.
func (p *tap) last() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.said[len(p.said)-1].Bytes())
}

var date = regexp.MustCompile(`(?i)(date: )[^\r]*`)

// answers is an application with all sorts of answers.
func answers(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h := w.Header()
	switch r.URL.Path {
	case "/length":
		h.Set("Content-Length", "5")
		fmt.Fprint(w, "hello")
	case "/chunked":
		for range 3 {
			fmt.Fprint(w, "part")
			_ = http.NewResponseController(w).Flush()
		}
	case "/trailers":
		h.Set("Trailer", "X-Sum")
		fmt.Fprint(w, "hello")
		_ = http.NewResponseController(w).Flush()
		h.Set("X-Sum", "42")
	case "/204":
		w.WriteHeader(http.StatusNoContent)
	case "/304":
		h.Set("Etag", `"v1"`)
		w.WriteHeader(http.StatusNotModified)
	case "/103":
		h.Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "hello")
	case "/coded":
		h.Set("Content-Encoding", "gzip")
		_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	case "/large":
		_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), 20_000))
	case "/500":
		http.Error(w, "broken", http.StatusInternalServerError)
	case "/cookies":
		h["Set-Cookie"] = []string{"a=1; Path=/", "b=2; HttpOnly", "c="}
	case "/chat":
		chat(w)
	case "/head":
		h.Set("X-Long", strings.Repeat("x", 20_000))
	default:
		fmt.Fprintf(w, "%s %s %d bytes %v", r.Method, r.RequestURI, len(body), r.Trailer)
	}
}

// chat becomes opaque and echoes a line, as a WebSocket might.
func chat(w http.ResponseWriter) {
	conn, b, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = b.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nupgrade: websocket\r\nX-b: 1\r\n\r\n")
	_ = b.Flush() // until which the proxy holds back what follows the request
	line, _ := b.ReadString('\n')
	_, _ = b.WriteString(line)
	_ = b.Flush()
}

var kindsOfAnswers = []string{"/length", "/chunked", "/trailers", "/204", "/304", "/103", "/coded", "/large", "/500", "/cookies", "/head", "/other?a=%20&b=c"}

// fieldsOfRequests are in the order and case that come, which are kept.
var fieldsOfRequests = []string{
	"",
	"accept: */*\r\nUSER-AGENT: odd\r\nX-b: 2\r\nx-A: 1\r\nX-B: 3\r\n",
	"Cookie: a=b; c=d\r\nCookie: e=f\r\nX-Empty:\r\nX-Blank: \r\n",
	"X-Latin: caf\xe9\r\nX-Quoted: \"a, b\", \"c;d\"\r\nX-Tab: a\tb\r\n",
	"X-Long: " + strings.Repeat("y", 30_000) + "\r\n",
	"Range: bytes=0-3\r\nIf-None-Match: \"v1\"\r\nTE: trailers\r\nConnection: TE\r\n",
	"Authorization: Basic YTpi\r\nX-Forwarded-For: 192.0.2.1, 198.51.100.2\r\nForwarded: for=192.0.2.1\r\nVia: 1.0 fred\r\n",
	strings.Repeat("X-Many: value\r\n", 90),
}

// framesOfRequests are bodies with what announces them.
var framesOfRequests = []string{
	"\r\n",
	"Content-Length: 0\r\n\r\n",
	"Content-Length: 11\r\n\r\nhello world",
	"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
	"transfer-encoding: Chunked\r\n\r\n00a;x=y\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
	"Trailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-End: 1\r\n\r\n",
	"Content-Length: 100000\r\n\r\n" + strings.Repeat("0123456789", 10_000),
}

// conversation is what a client says on one connection of HTTP/1: all at once,
// or each request when the one before is answered.
type conversation struct {
	name     string
	requests []string
	atOnce   bool
}

// conversations are varied by method, body, fields, answer and connection; the
// last request of each ends it.
func conversations() (all []conversation) {
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"}
	request := func(n int, version, more string) string {
		return fmt.Sprintf("%s %s %s\r\nHost: shop.example\r\n%s%s%s", methods[n%len(methods)], kindsOfAnswers[n/len(methods)%len(kindsOfAnswers)], version,
			more, fieldsOfRequests[n%7%len(fieldsOfRequests)+n/50%2], framesOfRequests[n%len(framesOfRequests)])
	}
	for n := range len(methods) * len(kindsOfAnswers) {
		last := request(n, "HTTP/1.1", "Connection: close\r\n")
		switch n % 4 {
		case 0:
			all = append(all, conversation{fmt.Sprint("one request ", n), []string{last}, true})
		case 1:
			all = append(all, conversation{fmt.Sprint("keep-alive ", n), []string{request(n+5, "HTTP/1.1", ""), request(n+9, "HTTP/1.1", "Connection: keep-alive\r\n"), last}, false})
		case 2:
			all = append(all, conversation{fmt.Sprint("pipelined ", n), []string{request(n+3, "HTTP/1.1", ""), request(n+8, "HTTP/1.1", ""), last}, true})
		case 3: // which knows no chunks
			old := fmt.Sprintf("%s %s HTTP/1.0\r\n%s\r\nhello", []string{"GET", "POST"}[n/4%2], kindsOfAnswers[n/4%len(kindsOfAnswers)], "Content-Length: 5\r\n")
			all = append(all, conversation{fmt.Sprint("HTTP/1.0 ", n), []string{old}, true})
		}
	}
	return all
}

// interim are conversations with answers in front of the final one, or in the
// place of it.
func interim() (all []conversation) {
	const line, upgrade = " HTTP/1.1\r\nHost: shop.example\r\n", "Upgrade: websocket\r\nconnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: AA==\r\n\r\n"
	for n, frames := range framesOfRequests[2:] { // 100 comes in front of those with a body
		text := "POST /other" + line + "Expect: 100-continue\r\n"
		all = append(all,
			conversation{fmt.Sprint("awaited 100 ", n), []string{text + frames, text + "Connection: close\r\n" + frames}, false},
			conversation{fmt.Sprint("pipelined 100 ", n), []string{text + frames, text + "Connection: close\r\n" + frames}, true})
	}
	for _, chat := range []string{"hello\n", "\x81\x00\xff\x00\r\n", "GET /a HTTP/1.1\r\n", strings.Repeat("0123456789", 10_000) + "\n"} {
		all = append(all,
			conversation{fmt.Sprintf("upgrade %.9q", chat), []string{"GET /chat" + line + upgrade + chat}, true},
			conversation{fmt.Sprintf("upgrade behind a request %.9q", chat), []string{"GET /length" + line + "\r\n", "GET /chat" + line + upgrade + chat}, true})
	}
	return all
}

// converse returns all that a client hears.
func converse(t *testing.T, to net.Addr, c *conversation) string {
	t.Helper()
	conn, _ := dial(t, to)
	defer func() { _ = conn.Close() }()
	heard := new(bytes.Buffer)
	r := bufio.NewReader(io.TeeReader(conn, heard))
	if c.atOnce {
		go func() { _, _ = io.WriteString(conn, strings.Join(c.requests, "")) }() // while the answers are read
	} else {
		for _, text := range c.requests {
			go func() { _, _ = io.WriteString(conn, text) }()
			method, _, _ := strings.Cut(text, " ")
			answer, err := http.ReadResponse(r, &http.Request{Method: method})
			for err == nil && answer.StatusCode < 200 {
				answer, err = http.ReadResponse(r, &http.Request{Method: method})
			}
			must(t, err)
			_, err = io.Copy(io.Discard, answer.Body)
			must(t, err)
			must(t, answer.Body.Close())
		}
	}
	_, err := io.Copy(io.Discard, r)
	must(t, err)
	return date.ReplaceAllString(heard.String(), "$1-")
}

// Exchanges of HTTP/1 are the same bytes for the client and for the server as
// without the proxy, but for Date.
func TestNoDifferenceOfHTTP1(t *testing.T) {
	exchanges := 0
	for origin, app := range map[string]net.Addr{"net/http": server(t, answers), "nginx": startNginx(t).plain} {
		direct := tapped(t, app)
		behind := tapped(t, app)
		proxied := proxied(t, behind, Undeclared, newGate(allowAll))
		all := conversations()
		if origin == "net/http" { // of nginx they depend on what has come with the header
			all = append(all, interim()...)
		}
		for _, c := range all {
			want, got := converse(t, direct, &c), converse(t, proxied, &c)
			if got != want {
				t.Errorf("%s, %s: the client hears %d bytes\n%.400q, directly %d\n%.400q", origin, c.name, len(got), got, len(want), want)
			}
			if got, want := behind.last(), direct.last(); !bytes.Equal(got, want) {
				t.Errorf("%s, %s: the server hears %d bytes\n%.400q, directly %d\n%.400q", origin, c.name, len(got), got, len(want), want)
			}
			exchanges += len(c.requests)
		}
	}
	if t.Logf("%d exchanges", exchanges); exchanges < 200 {
		t.Errorf("only %d exchanges", exchanges)
	}
}

// What RFC 9110 section 7.6.1 has every hop remove is the one difference.
func TestDifferencesOfHops(t *testing.T) {
	app := server(t, answers)
	behind := tapped(t, app)
	to := proxied(t, behind, Undeclared, newGate(allowAll))
	for _, test := range []struct{ came, goes string }{
		{"X-A: 1\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nX-B: 2\r\n", "X-A: 1\r\nConnection: close\r\nX-B: 2\r\n"},
		{"connection: close, x-hop\r\nX-HOP: 1\r\nx-hop: 2\r\n", "connection: close\r\n"},
		{"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings, close\r\n", "Connection: close\r\n"},
		{"Connection: close\r\nUpgrade: TLS/1.0\r\nX: y\r\n", "Connection: close\r\nX: y\r\n"},
		{"Keep-Alive: timeout=5\r\nConnection: keep-alive, close\r\n", "Keep-Alive: timeout=5\r\nConnection: keep-alive, close\r\n"},
		{"Proxy-Connection: close\r\nConnection: close\r\n", "Proxy-Connection: close\r\nConnection: close\r\n"},
	} {
		const line, end = "GET /length HTTP/1.1\r\nHost: shop.example\r\n", "\r\n"
		converse(t, to, &conversation{"", []string{line + test.came + end}, true})
		if got := string(behind.last()); got != line+test.goes+end {
			t.Errorf("%q goes as %q", test.came, got)
		}
	}
}

// streams2 tells what one side of a connection of HTTP/2 has said on each of its
// streams, as far as it concerns the other end: fields in their order, bodies,
// trailers and ends.
func streams2(t *testing.T, said []byte) string {
	t.Helper()
	said = bytes.TrimPrefix(said, []byte(http2.ClientPreface))
	f := http2.NewFramer(io.Discard, bytes.NewReader(said))
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.MaxHeaderListSize = 1 << 20
	streams := map[uint32]*strings.Builder{}
	var order []uint32
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			break // the end, or what has come of a last frame
		}
		id := frame.Header().StreamID
		if id == 0 {
			continue
		}
		if streams[id] == nil {
			streams[id] = new(strings.Builder)
			order = append(order, id)
		}
		describeFrame(streams[id], frame)
	}
	var all strings.Builder
	for _, id := range order {
		fmt.Fprintf(&all, "%d:%s\n", id, streams[id])
	}
	return all.String()
}

func describeFrame(to *strings.Builder, frame http2.Frame) {
	switch f := frame.(type) {
	case *http2.MetaHeadersFrame:
		for _, field := range f.Fields {
			if field.Name == "date" {
				field.Value = "-"
			}
			fmt.Fprintf(to, " %s=%q", field.Name, field.Value)
		}
	case *http2.DataFrame: // wherever it is cut into frames
		to.WriteString(strings.ReplaceAll(string(f.Data()), "\n", "\\n"))
	case *http2.RSTStreamFrame:
		// Behind the ends of both, it says nothing. All requests here end.
		if !strings.HasSuffix(to.String(), " end") {
			fmt.Fprint(to, " reset ", f.ErrCode)
		}
	}
	if frame.Header().Flags.Has(http2.FlagDataEndStream) && (frame.Header().Type == http2.FrameData || frame.Header().Type == http2.FrameHeaders) {
		to.WriteString(" end")
	}
}

// converse2 makes requests of HTTP/2 on one connection, one after the other, and
// returns what was heard. Not every server takes trailers.
func converse2(t *testing.T, to net.Addr, trailers bool) (heard string, exchanges int) {
	t.Helper()
	f := dialFrames(t, to)
	said := new(bytes.Buffer)
	// A request goes out at once: nginx answers as soon as it has the header, and
	// what has not come by then need not come any more.
	requests := bufio.NewWriterSize(f.Conn, 64<<10)
	f.Framer = http2.NewFramer(requests, io.TeeReader(f.Conn, said))
	must(t, f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	must(t, f.WriteWindowUpdate(0, 1<<30))
	for i, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
		for j, path := range kindsOfAnswers {
			id := uint32(2*exchanges + 1)
			exchanges++
			fields := []string{":method", method, ":scheme", "http", ":path", path, ":authority", "shop.example", "x-b", "2", "x-a", "1", "x-b", "3"}
			if j%3 == 0 {
				fields = append(fields, "cookie", "a=b", "cookie", "c=d", "x-long", strings.Repeat("y", 12_000))
			}
			body := (i + j) % 4
			if !trailers {
				body %= 3
			}
			f.open(id, body == 0, fields...)
			if body > 0 {
				must(t, f.WriteData(id, body == 1, []byte("hello world")))
			}
			if body == 2 {
				must(t, f.WriteDataPadded(id, true, []byte(" and more"), make([]byte, 20)))
			}
			if body == 3 {
				f.open(id, true, "x-end", "1")
			}
			must(t, requests.Flush())
			awaitEnd(t, f, id)
		}
	}
	return streams2(t, said.Bytes()), exchanges
}

func awaitEnd(t *testing.T, f *frames, id uint32) {
	t.Helper()
	for {
		frame, err := f.ReadFrame()
		must(t, err)
		if s, ok := frame.(*http2.SettingsFrame); ok && !s.IsAck() {
			must(t, f.WriteSettingsAck())
		}
		h := frame.Header()
		if h.StreamID == id && (h.Type == http2.FrameRSTStream || h.Flags.Has(http2.FlagDataEndStream) && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders)) {
			return
		}
	}
}

// Exchanges of HTTP/2 are the same fields in the same order, bodies, trailers
// and ends, for the client and for the server, as without the proxy.
func TestNoDifferenceOfHTTP2(t *testing.T) {
	for origin, app := range map[string]net.Addr{"net/http": server(t, answers), "nginx": startNginx(t).http2} {
		direct, behind := tapped(t, app), tapped(t, app)
		want, exchanges := converse2(t, direct, origin != "nginx")
		got, _ := converse2(t, proxied(t, behind, Undeclared, newGate(allowAll)), origin != "nginx")
		differ(t, origin+", the client hears", got, want)
		differ(t, origin+", the server hears", streams2(t, behind.last()), streams2(t, direct.last()))
		t.Logf("%s: %d exchanges", origin, exchanges)
	}
}

// differ compares line by line.
func differ(t *testing.T, what, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Errorf("%s\n%.600q, directly\n%.600q", what, g[i], w[i])
		}
	}
	if len(g) != len(w) {
		t.Errorf("%s %d streams, directly %d", what, len(g)-1, len(w)-1)
	}
}
