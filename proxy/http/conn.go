package http

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// lingerTime and lingerBytes bound what is still read from a client that was
// answered and is to leave: closing with bytes unread would take the answer
// from it.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 1 << 20
)

// conn is one connection of a client and the application's for it. One
// goroutine reads the client, another one the application.
type conn struct {
	client, app reader
	gate        Gate
	id          string

	left       atomic.Bool   // the proxy itself has ended the connection in order
	recognized chan struct{} // closed once protocol is final
	ask        sync.Once     // the gate, about what is no HTTP
	refused    error

	mu       sync.Mutex // guards what follows
	protocol Protocol
	final    bool
	end      relay.End
	err      error
}

// Serve carries a connection until both directions have ended, either side
// resets, the gate denies something that cannot be answered, or ctx ends. The
// caller closes the two sides afterwards, with RST unless the result's end is
// relay.Finished. id is what refusals tell the client.
func Serve(ctx context.Context, client, app Side, declared Protocol, id string, gate Gate) relay.Result {
	c := &conn{
		client: reader{side: client}, app: reader{side: app}, gate: gate, id: id,
		recognized: make(chan struct{}), protocol: declared, end: relay.Finished,
	}
	if declared == Opaque {
		c.settle(Opaque)
	}
	stop := context.AfterFunc(ctx, func() { c.fail(relay.Aborted, context.Cause(ctx)) })
	defer stop()
	h1 := &conn1{conn: c}
	h2 := newConn2(c)
	var other sync.WaitGroup
	other.Go(func() { c.serveApp(h1, h2) })
	c.serveClient(h1, h2)
	other.Wait()
	h2.endAll(errAppGone) // what was begun behind the application's end
	c.client.drop()
	c.app.drop()
	c.mu.Lock()
	defer c.mu.Unlock()
	return relay.Result{End: c.end, Err: c.err}
}

// fail resets both sides; the first reason stays.
func (c *conn) fail(end relay.End, err error) {
	c.mu.Lock()
	if c.end == relay.Finished {
		c.end, c.err = end, err
	}
	c.mu.Unlock()
	c.client.side.Reset()
	c.app.side.Reset()
}

// settle says what the connection carries, unless that is final.
func (c *conn) settle(p Protocol) Protocol {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.final {
		c.final, c.protocol = true, p
		close(c.recognized)
	}
	return c.protocol
}

// opaque asks the gate about a connection that carries no HTTP, once.
func (c *conn) opaque(serverName string) error {
	c.ask.Do(func() { c.refused = c.gate.Opaque(serverName) })
	return c.refused
}

func (c *conn) serveClient(h1 *conn1, h2 *conn2) {
	p, err := c.recognize()
	if err == nil {
		switch p {
		case HTTP1:
			err = h1.serveClient()
		case HTTP2:
			err = h2.serveClient()
		case Opaque, Undeclared:
			if err = c.opaque(c.serverName()); err != nil {
				c.fail(relay.Aborted, err)
				return
			}
			err = c.copy(&c.client, c.app.side, new(atomic.Int64))
		}
	}
	switch {
	case err == nil:
	case err == io.EOF: //nolint:errorlint // a side's, returned as it is
		_ = c.app.side.CloseWrite() // fails only where it is gone, which its own direction tells
	default:
		c.fail(relay.ResetByPeer, err)
	}
}

func (c *conn) serveApp(h1 *conn1, h2 *conn2) {
	p, err := c.recognizeApp()
	if err == nil || p != Opaque {
		switch p {
		case HTTP1:
			err = h1.serveApp()
		case HTTP2:
			err = h2.serveApp()
		case Opaque, Undeclared:
			if err = c.opaque(""); err != nil {
				c.fail(relay.Aborted, err)
				return
			}
			err = c.copy(&c.app, c.client.side, new(atomic.Int64))
		}
	}
	switch {
	case err == nil:
	case err == io.EOF: //nolint:errorlint // a side's, returned as it is
		_ = c.client.side.CloseWrite()
	case c.left.Load():
	default:
		c.fail(relay.ResetByApp, err)
	}
	h1.appEnded()
}

// copy passes on what comes, as it is, until its end.
func (c *conn) copy(from *reader, to Side, count *atomic.Int64) error {
	for {
		if err := from.await(); err != nil {
			return err
		}
		n := from.w - from.r
		if err := from.pass(n, to); err != nil {
			return err
		}
		count.Add(int64(n))
	}
}

// recognize tells the protocol by what is declared and by the client's first
// bytes, unless the application speaks first.
func (c *conn) recognize() (Protocol, error) {
	c.mu.Lock()
	declared := c.protocol
	c.mu.Unlock()
	seen := Undeclared
	for seen == Undeclared {
		if err := c.client.fill(); err != nil {
			c.settle(Opaque)
			return Opaque, err
		}
		seen = looksLike(c.client.bytes(), declared)
	}
	return c.settle(seen), nil
}

// recognizeApp waits until the application says something. If it does so before
// the client, the connection carries no HTTP; but servers of HTTP/2 may greet.
func (c *conn) recognizeApp() (Protocol, error) {
	if err := c.app.await(); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.final {
			return c.protocol, err
		}
		return Opaque, err
	}
	for !c.isRecognized() {
		b := c.app.bytes()
		if !looksLikeSettings(b) {
			break
		}
		if len(b) >= frameHeader {
			<-c.recognized
			break
		}
		if c.app.fill() != nil {
			break // what there is goes its way, and then the end
		}
	}
	return c.settle(Opaque), nil
}

func (c *conn) isRecognized() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.final
}

// looksLikeSettings wants the header of a frame with SETTINGS, as far as there
// are bytes.
func looksLikeSettings(b []byte) bool {
	for i, c := range b[:min(len(b), frameHeader)] {
		switch {
		case i == 2: // length
		case i == 3 && http2.FrameType(c) != http2.FrameSettings, i != 3 && c != 0:
			return false
		}
	}
	return true
}

// looksLike is Undeclared where more bytes are needed. A client of HTTP/2 says
// so at once; on a port that is declared to carry HTTP all else is HTTP/1.
func looksLike(b []byte, declared Protocol) Protocol {
	const preface = http2.ClientPreface
	n := min(len(b), len(preface))
	switch {
	case bytes.HasPrefix(b, []byte(preface)):
		return HTTP2
	case string(b[:n]) == preface[:n]:
		return Undeclared
	case declared == Opaque:
		return Opaque
	case declared != Undeclared:
		return HTTP1
	}
	return looksLikeRequest(b)
}

// maxFirstLine is how long the first line of text may be until it counts as a
// request.
const maxFirstLine = 8 << 10

// looksLikeRequest wants a method and a space, or a line that names HTTP. It is
// as lenient as the most lenient server: what only that takes for a request
// must not pass as something else, and is refused as HTTP. A method is longer
// than what other protocols begin with, in capitals and followed by a space,
// only by chance.
func looksLikeRequest(b []byte) Protocol {
	for len(b) > 0 && (isSpace[b[0]] || b[0] == '\n') {
		b = b[1:]
	}
	line, _, whole := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimRight(line, "\r")
	method, rest, capitals := line, []byte(nil), true
	for i, c := range line {
		switch {
		case isSpace[c] && rest == nil:
			method, rest = line[:i], line[i:]
		case isSpace[c]:
		case c < ' ' || c == 0x7f || rest == nil && classes[c]&inToken == 0:
			return Opaque
		}
		capitals = capitals && (rest != nil || c >= 'A' && c <= 'Z' || c == '-' || c == '_')
	}
	switch {
	case rest != nil && capitals && len(method) >= 3,
		whole && bytes.Contains(bytes.ToUpper(line), []byte("HTTP/")):
		return HTTP1
	case whole, !mayBeTarget(rest):
		return Opaque
	case len(line) > maxFirstLine:
		return HTTP1
	}
	return Undeclared
}

// mayBeTarget reports whether a path or a URL comes after the method, as far as
// one can see.
func mayBeTarget(rest []byte) bool {
	for len(rest) > 0 && isSpace[rest[0]] {
		rest = rest[1:]
	}
	if len(rest) == 0 || rest[0] == '/' || rest[0] == '*' {
		return true
	}
	end := slices.IndexFunc(rest, func(c byte) bool { return isSpace[c] })
	return end < 0 || bytes.Contains(rest[:end], []byte("://"))
}

// isSpace is whatever some server separates the words of a request by.
var isSpace = [256]bool{
	' ': true, '\t': true, '\v': true, '\f': true, '\r': true,
	0x1c: true, 0x1d: true, 0x1e: true, 0x1f: true, 0x85: true, 0xa0: true,
}

// linger reads what the client still sends, within bounds, so that it can read
// its answer.
func (c *conn) linger() {
	_ = c.client.side.CloseWrite()
	timer := time.AfterFunc(lingerTime, c.client.side.Reset)
	defer timer.Stop()
	for n := 0; n < lingerBytes; {
		if c.client.await() != nil {
			return
		}
		n += c.client.w - c.client.r
		c.client.skip(c.client.w - c.client.r)
	}
}
