package http

import (
	"bufio"
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds each wait.
const patience = 30 * time.Second

// testGate decides by a function and remembers what it saw.
type testGate struct {
	decide func(*Request) Decision
	slow   chan struct{} // decisions about slowPath wait for it, where there is one
	// slowPath is what paths of these begin with.
	slowPath string
	opaque   error
	wants    int           // of a body
	held     atomic.Int64  // bytes of bodies
	room     int64         // for these; 0 is any
	see      func(Content) // unless nil, gets what there is of it
	abort    bool          // requests end where they begin

	mu          sync.Mutex
	requests    []Request
	decided     []decidedOn
	live        []*Live
	results     []Result
	malformed   []*MalformedError
	serverNames []string
	begun       chan struct{}
	ended       chan Result
}

// decidedOn is a request, and what there was of its body, that was allowed.
type decidedOn struct {
	Request
	target string // that is forwarded
	body   string
	whole  bool
}

func newGate(decide func(*Request) Decision) *testGate {
	return &testGate{decide: decide, begun: make(chan struct{}, 1000), ended: make(chan Result, 1000)}
}

func allowAll(*Request) Decision { return Decision{} }

// denyPaths refuses paths that begin with /deny.
func denyPaths(r *Request) Decision {
	if len(r.Target) >= 5 && r.Target[:5] == "/deny" {
		return Decision{Refusal: &Refusal{Status: 403, Message: "access denied"}}
	}
	return Decision{}
}

func (g *testGate) Begin(r *Request, live *Live) Exchange {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := *r
	kept.Fields = append([]Field(nil), r.Fields...)
	g.requests, g.live = append(g.requests, kept), append(g.live, live)
	select {
	case g.begun <- struct{}{}:
	default: // nobody counts them
	}
	if g.abort {
		live.Abort()
	}
	return &testExchange{gate: g, request: kept}
}

func (g *testGate) Opaque(serverName string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serverNames = append(g.serverNames, serverName)
	return g.opaque
}

func (g *testGate) Malformed(e *MalformedError) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.malformed = append(g.malformed, e)
}

func (g *testGate) seen() []Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Request(nil), g.requests...)
}

type testExchange struct {
	gate    *testGate
	request Request
}

func (x *testExchange) Hold(n int) bool {
	if held := x.gate.held.Add(int64(n)); x.gate.room > 0 && held > x.gate.room {
		x.gate.held.Add(-int64(n))
		return false
	}
	return true
}

func (x *testExchange) Free(n int) { x.gate.held.Add(-int64(n)) }

func (x *testExchange) Ready() bool {
	return x.gate.slow == nil || !strings.HasPrefix(x.request.Target, x.gate.slowPath)
}

func (x *testExchange) Wants() int { return x.gate.wants }

func (x *testExchange) Decision(early Content) Decision {
	if x.gate.see != nil {
		x.gate.see(early)
	}
	if !x.Ready() {
		<-x.gate.slow
	}
	decision := x.gate.decide(&x.request)
	if early.NoRoom {
		decision = Decision{Refusal: &Refusal{Status: 503}}
	}
	if decision.Refusal == nil {
		x.gate.mu.Lock()
		defer x.gate.mu.Unlock()
		target := cmp.Or(decision.Edits.Target, x.request.Target)
		x.gate.decided = append(x.gate.decided, decidedOn{x.request, target, string(early.Bytes), early.Whole})
	}
	return decision
}

func (x *testExchange) End(r Result) {
	x.gate.mu.Lock()
	x.gate.results = append(x.gate.results, r)
	x.gate.mu.Unlock()
	select {
	case x.gate.ended <- r:
	default:
	}
}

// proxied serves connections to an address by way of Serve.
func proxied(t testing.TB, target net.Addr, declared Protocol, gate Gate) net.Addr {
	t.Helper()
	l := listen(t)
	var serving sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { carry(ctx, c.(*net.TCPConn), target, declared, gate) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr()
}

func carry(ctx context.Context, c *net.TCPConn, target net.Addr, declared Protocol, gate Gate) {
	defer func() { _ = c.Close() }()
	a, err := net.Dial("tcp", target.String())
	if err != nil {
		_ = c.SetLinger(0)
		return
	}
	app := a.(*net.TCPConn)
	defer func() { _ = app.Close() }()
	clientSide, _ := NewSocket(c, nil)
	appSide, _ := NewSocket(app, nil)
	r := Serve(ctx, clientSide, appSide, declared, "0123456789abcdef0123456789abcdef", gate) //nolint:gosec // this package's own, no server of net/http
	if r.End != relay.Finished {
		_ = c.SetLinger(0)
		_ = app.SetLinger(0)
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

// server is net/http's, speaking HTTP/1 and HTTP/2 without TLS.
func server(t testing.TB, handler http.HandlerFunc) net.Addr {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols), ReadHeaderTimeout: patience}
	s.Protocols.SetHTTP1(true)
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

// raw runs a server of bytes, a goroutine for each connection.
func raw(t testing.TB, handle func(*net.TCPConn)) net.Addr {
	t.Helper()
	l := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr()
}

// client2 speaks HTTP/2 with prior knowledge.
func client2(t testing.TB) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 3 * patience}
}

// dial connects; all that is done with it must be done within patience.
func dial(t testing.TB, to net.Addr) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.TCPConn), bufio.NewReader(c)
}

func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(c, text)
	must(t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("did not come about in time")
	}
	return v
}
