package http

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// describe answers with what net/http understood of a request.
func describe(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("Trailer", "Checksum")
	fmt.Fprintf(w, "%s %s %s %q %v", r.Method, r.Host, r.RequestURI, body, r.Trailer)
	w.Header().Set("Checksum", "42")
}

// ask sends a request on a connection and returns status and body.
func ask(t *testing.T, c net.Conn, b *bufio.Reader, request string) (int, string) {
	t.Helper()
	say(t, c, request)
	method, _, _ := strings.Cut(request, " ")
	r, err := http.ReadResponse(b, &http.Request{Method: method})
	must(t, err)
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	must(t, err)
	return r.StatusCode, string(body)
}

func TestRequestsOfHTTP1(t *testing.T) {
	gate := newGate(denyPaths)
	to := proxied(t, server(t, describe), Undeclared, gate)
	tests := []struct{ name, request, want string }{
		{"GET", "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n", `200 GET x /a?b=c "" map[]`},
		{"length", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", `200 POST x /a "abc" map[]`},
		{"chunks", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", `200 POST x /a "abcde" map[]`},
		{"trailers", "POST /a HTTP/1.1\r\nHost: x\r\nTrailer: sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nSum: 7\r\n\r\n", `200 POST x /a "a" map[Sum:[7]]`},
		{"HEAD", "HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", `200 `},
		{"OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", `200 `},
		{"absolute", "GET http://x/a HTTP/1.1\r\nHost: X\r\n\r\n", `200 GET x http://x/a "" map[]`},
		{"empty line in front", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", `200 GET x /a "" map[]`},
		{"denied", "GET /deny HTTP/1.1\r\nHost: x\r\n\r\n", "403 access denied\ntacit-connection-id: 0123456789abcdef0123456789abcdef\n"},
		{"denied HEAD", "HEAD /deny HTTP/1.1\r\nHost: x\r\n\r\n", "403 "},
	}
	c, b := dial(t, to) // one connection for all
	for _, test := range tests {
		status, body := ask(t, c, b, test.request)
		if got := fmt.Sprintf("%d %s", status, body); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	for range tests {
		within(t, gate.ended)
	}
}

// Requests that a client sends ahead are answered in order, those denied among
// them.
func TestPipelining(t *testing.T) {
	to := proxied(t, server(t, describe), Undeclared, newGate(denyPaths))
	c, b := dial(t, to)
	var all strings.Builder
	for i := range 50 {
		path := "/a"
		if i%3 == 0 {
			path = "/deny"
		}
		fmt.Fprintf(&all, "POST %s%d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", path, i)
	}
	say(t, c, all.String())
	for i := range 50 {
		r, err := http.ReadResponse(b, nil)
		must(t, err)
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if denied := i%3 == 0; denied != (r.StatusCode == 403) || !denied && !strings.Contains(string(body), fmt.Sprintf("/a%d ", i)) {
			t.Errorf("answer %d: %d %q", i, r.StatusCode, body)
		}
	}
}

// A denied request with a body is answered although the client still sends it;
// then the connection ends in order, and the application has seen nothing.
func TestDeniedBody(t *testing.T) {
	got := make(chan string, 1)
	app := raw(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	to := proxied(t, app, Undeclared, newGate(denyPaths))
	c, b := dial(t, to)
	status, body := ask(t, c, b, "POST /deny HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"+strings.Repeat("x", 100000))
	if status != 403 || !strings.Contains(body, "denied") {
		t.Errorf("%d %q", status, body)
	}
	say(t, c, strings.Repeat("x", 200000))
	if n, err := b.ReadByte(); err != io.EOF {
		t.Errorf("behind the answer: %v, %v", n, err)
	}
	_ = c.Close()
	if b := within(t, got); b != "" {
		t.Errorf("the application got %q", b)
	}
}

func TestContinue(t *testing.T) {
	to := proxied(t, server(t, describe), Undeclared, newGate(denyPaths))
	c, b := dial(t, to)
	say(t, c, "PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	line, err := b.ReadString('\n')
	must(t, err)
	if line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q", line)
	}
	_, _ = b.ReadString('\n')
	if status, body := ask(t, c, b, "ab"); status != 200 || !strings.Contains(body, `"ab"`) {
		t.Errorf("%d %q", status, body)
	}
	if status, _ := ask(t, c, b, "PUT /deny HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"); status != 403 {
		t.Errorf("%d", status)
	}
}

func TestOldHTTP(t *testing.T) {
	app := raw(t, func(c *net.TCPConn) {
		_, _ = bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end")
	})
	c, b := dial(t, proxied(t, app, Undeclared, newGate(allowAll)))
	say(t, c, "GET / HTTP/1.0\r\n\r\n")
	all, err := io.ReadAll(b)
	if want := "HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end"; string(all) != want || err != nil {
		t.Errorf("%q, %v", all, err)
	}
}

// What reaches the application are the bytes that came, header order and case
// included, without what is the hop's.
func TestHeadsAsTheyCame(t *testing.T) {
	got := make(chan string, 1)
	app := raw(t, func(c *net.TCPConn) {
		b := make([]byte, 4096)
		n, _ := c.Read(b)
		got <- string(b[:n])
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nx-MiXed: 1\r\n\r\n")
	})
	edit := func(r *Request) Decision {
		if r.Path() == "/edit" {
			fields := append([]Field(nil), r.Fields...)
			return Decision{Edits: Edits{Fields: append(fields, Field{Name: "x-new", Value: "v"}), Target: "/edited?q"}}
		}
		return Decision{}
	}
	to := proxied(t, app, Undeclared, newGate(edit))
	for _, test := range []struct{ in, out string }{
		{"GET /a HTTP/1.1\r\nhOST:x\r\nX-b:  1 \r\nx-A: 2\r\n\r\n", ""},
		{"GET /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nA: b\r\n\r\n",
			"GET /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nA: b\r\n\r\n"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: TLS/1.0\r\nConnection: upgrade\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nConnection: X-Secret, close\r\nx-secret: 1\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", ""},
		{"GET /a HTTP/1.1\r\nHost: x\r\nConnection: TE\r\nTE: trailers\r\n\r\n", ""},
		{"GET /edit?token=1 HTTP/1.1\r\nHost: x\r\nB: 1\r\n\r\n", "GET /edited?q HTTP/1.1\r\nHost: x\r\nB: 1\r\nx-new: v\r\n\r\n"},
	} {
		c, b := dial(t, to)
		say(t, c, test.in)
		if test.out == "" {
			test.out = test.in
		}
		if out := within(t, got); out != test.out {
			t.Errorf("%q reached the application as %q, want %q", test.in, out, test.out)
		}
		if line, _ := b.ReadString('\n'); line != "HTTP/1.1 204 No Content\r\n" {
			t.Errorf("%q", line)
		}
		if line, _ := b.ReadString('\n'); line != "x-MiXed: 1\r\n" {
			t.Errorf("%q", line)
		}
	}
}

// A connection that becomes a WebSocket is opaque; its request is the one that
// is ended by Abort.
func TestUpgrade(t *testing.T) {
	app := raw(t, func(c *net.TCPConn) {
		b := bufio.NewReader(c)
		r, err := http.ReadRequest(b)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n", r.Header.Get("Upgrade"))
		_, _ = io.Copy(c, b)
	})
	gate := newGate(allowAll)
	to := proxied(t, app, Undeclared, gate)
	c, b := dial(t, to)
	say(t, c, "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00early")
	r, err := http.ReadResponse(b, nil)
	must(t, err)
	_ = r.Body.Close() // of an interim answer: there is none
	if r.StatusCode != 101 {
		t.Fatalf("%v", r.Status)
	}
	say(t, c, "GET /smuggled HTTP/1.1\r\n\r\n")
	want := "\x81\x00earlyGET /smuggled HTTP/1.1\r\n\r\n"
	got := make([]byte, len(want))
	_, err = io.ReadFull(b, got)
	if err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	if n := len(gate.seen()); n != 1 {
		t.Errorf("%d requests were decided on", n)
	}
	gate.mu.Lock()
	live := gate.live[0]
	gate.mu.Unlock()
	live.Abort()
	if _, err := b.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after Abort: %v", err)
	}
	if result := within(t, gate.ended); result.Status != 101 {
		t.Errorf("%+v", result)
	}
}

// An application may not change the protocol when nobody asked for it.
func TestUnaskedUpgrade(t *testing.T) {
	app := raw(t, func(c *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	c, b := dial(t, proxied(t, app, Undeclared, newGate(allowAll)))
	status, _ := ask(t, c, b, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	if status != 502 {
		t.Errorf("%d", status)
	}
}

func TestConnect(t *testing.T) {
	app := raw(t, func(c *net.TCPConn) {
		b := bufio.NewReader(c)
		if _, err := http.ReadRequest(b); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		_, _ = io.Copy(c, b)
	})
	c, b := dial(t, proxied(t, app, Undeclared, newGate(allowAll)))
	say(t, c, "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n")
	for _, want := range []string{"HTTP/1.1 200 OK\r\n", "\r\n"} {
		if line, _ := b.ReadString('\n'); line != want {
			t.Errorf("%q", line)
		}
	}
	say(t, c, "anything\n")
	if line, _ := b.ReadString('\n'); line != "anything\n" {
		t.Errorf("%q", line)
	}
}

// A large body passes both ways.
func TestBulkOfHTTP1(t *testing.T) {
	to := proxied(t, server(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}), Undeclared, newGate(allowAll))
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for _, length := range []int64{int64(len(data)), -1} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+to.String(), io.NopCloser(bytes.NewReader(data)))
		must(t, err)
		request.ContentLength = length
		response, err := transport.RoundTrip(request)
		must(t, err)
		got, err := io.ReadAll(response.Body)
		must(t, err)
		must(t, response.Body.Close())
		if !bytes.Equal(got, data) {
			t.Errorf("length %d: %d bytes came back", length, len(got))
		}
	}
}

// Whatever some server takes for a request is one; other protocols are let be,
// as soon as they differ.
func TestLooksLike(t *testing.T) {
	for text, want := range map[string]Protocol{
		"GET / HTTP/1.1\r\n": HTTP1, "GET ": HTTP1, "GET": Undeclared, "PATCH": Undeclared,
		"\n\r\n GET /": HTTP1, "\r": Undeclared, "\r\n\r\nGET / HTTP/1.1\r\n": HTTP1,
		"GET\t/": HTTP1, "GET\v/": HTTP1, "GET\r/": HTTP1, "GET\r": Undeclared,
		"get / http/1.1\r\n": HTTP1, "get / ": Undeclared, "get /\n": Opaque, "get http://x/ ": Undeclared, "four score and seven": Opaque, "G / HTTP/1.1\n": HTTP1,
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\n": HTTP1,
		strings.Repeat("a", maxFirstLine+1):                  HTTP1,
		"PING\r\n":                                           Opaque, "*1\r\n$4\r\nPING\r\n": Opaque, "SSH-2.0-x\r\n": Opaque, "quit\n": Opaque,
		"{\"a\": 1}": Opaque, "\x16\x03\x01": Opaque, "AMQP\x00\x00\x09\x01": Opaque, "\x00\x00\x00\x08": Opaque,
		"PRI * HTTP/2.0\r\n": Undeclared, "PRI * HTTP/1.1\r\n": HTTP1,
	} {
		if got := looksLike([]byte(text), Undeclared); got != want {
			t.Errorf("%.40q: %v, want %v", text, got, want)
		}
	}
}

// What is not HTTP is the gate's to decide on, whoever speaks first.
func TestOpaque(t *testing.T) {
	echo := raw(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
	greeter := raw(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	gate := newGate(allowAll)
	c, b := dial(t, proxied(t, echo, Undeclared, gate))
	say(t, c, "\x16\x03\x01 hello")
	must(t, c.CloseWrite())
	if all, err := io.ReadAll(b); string(all) != "\x16\x03\x01 hello" || err != nil {
		t.Errorf("%q, %v", all, err)
	}
	_, b = dial(t, proxied(t, greeter, Undeclared, gate))
	if line, err := b.ReadString('\n'); line != "SSH-2.0-x\r\n" {
		t.Errorf("%q, %v", line, err)
	}
	gate = newGate(allowAll)
	gate.opaque = errors.New("not HTTP")
	c, b = dial(t, proxied(t, echo, Undeclared, gate))
	say(t, c, "\x16\x03\x01 hello")
	if _, err := b.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("denied: %v", err)
	}
	greeted, err := net.Dial("tcp", proxied(t, greeter, Undeclared, gate).String())
	if err == nil { // it may be reset before connect returns
		_, err = greeted.Read(make([]byte, 1))
		_ = greeted.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("denied, the server first: %v", err)
	}
}

// The ends of a connection are passed on as what they are.
func TestCloses(t *testing.T) {
	t.Run("the application resets", func(t *testing.T) {
		app := raw(t, func(c *net.TCPConn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_ = c.SetLinger(0)
		})
		c, b := dial(t, proxied(t, app, Undeclared, newGate(allowAll)))
		say(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := b.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
	t.Run("the application ends while idle", func(t *testing.T) {
		app := raw(t, func(c *net.TCPConn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		})
		c, b := dial(t, proxied(t, app, Undeclared, newGate(allowAll)))
		if status, _ := ask(t, c, b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); status != 204 {
			t.Errorf("%d", status)
		}
		if _, err := b.ReadByte(); err != io.EOF {
			t.Errorf("%v", err)
		}
	})
	t.Run("the client goes while the application thinks", func(t *testing.T) {
		gone := make(chan error, 1)
		app := raw(t, func(c *net.TCPConn) {
			b := bufio.NewReader(c)
			_, _ = http.ReadRequest(b)
			_, err := b.ReadByte()
			gone <- err
		})
		c, _ := dial(t, proxied(t, app, Undeclared, newGate(allowAll)))
		say(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		must(t, c.SetLinger(0))
		must(t, c.Close())
		if err := within(t, gone); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
}
