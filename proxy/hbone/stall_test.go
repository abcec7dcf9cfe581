package hbone

import (
	"context"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/relay"
)

// Any number of readers that do not read must not slow the others down, though
// all share one connection.
func TestStalledReadersSlowNobody(t *testing.T) {
	const stalled, busy, volume = 20, 50, 2 << 20
	budget := NewBudget(32 << 20)
	release := make(chan struct{})
	lazy := application(t, func(c *net.TCPConn) { <-release })
	brisk := application(t, echo)
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		target := brisk
		if s.Authority() == "10.0.0.9:9" {
			target = lazy
		}
		forward(target)(ctx, s)
	}, worldOptions{server: ServerConfig{Budget: budget}})

	var stuck []*net.TCPConn
	var all sync.WaitGroup
	for range stalled {
		app, _ := w.connect("10.0.0.9:9")
		all.Go(func() { fill(app) })
		stuck = append(stuck, app)
	}
	all.Wait()
	start := time.Now()
	for range busy {
		all.Go(func() {
			app, _ := w.connect("10.0.0.1:80")
			app.SetDeadline(time.Now().Add(patience))
			exchange(t, app, volume)
		})
	}
	all.Wait()
	elapsed := time.Since(start)
	if n := w.dialed(); n != 1 {
		t.Errorf("%d connections, want one", n)
	}
	t.Logf("%d MB both ways beside %d stalled readers in %v, %d bytes of window granted", busy*volume>>20, stalled, elapsed, budget.Used())
	if budget.Used() > 32<<20 {
		t.Errorf("%d bytes granted over the budget", budget.Used())
	}
	close(release)
	closeAll(stuck)
}

// What is within every stream's window is still too much if there are enough
// streams: some are reset, and memory is bounded. Those whose applications
// read are none of them.
func TestStalledReadersAreBoundedTogether(t *testing.T) {
	const limit, streams = 256 << 10, 30
	budget := NewBudget(limit)
	release := make(chan struct{})
	lazy := application(t, func(c *net.TCPConn) {
		c.SetReadBuffer(4096)
		<-release
	})
	held := make(chan struct{})
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		target := lazy
		if s.Authority() == "10.0.0.1:80" {
			<-held // its first bytes have to be kept
			target = application(t, echo)
		}
		forward(target)(ctx, s)
	}, worldOptions{server: ServerConfig{Budget: budget}})
	ends := make(chan relay.Result, streams)
	for range streams {
		app, done := w.connect("10.0.0.9:9")
		fill(app)
		if kept := budget.keptNow(); kept > 2*limit {
			t.Fatalf("%d bytes are kept, want at most %d", kept, 2*limit)
		}
		go func() { ends <- <-done }()
		defer app.Close()
	}
	app, _ := w.connect("10.0.0.1:80")
	app.SetDeadline(time.Now().Add(patience))
	go close(held)
	exchange(t, app, 1<<20)
	for reset := 0; reset == 0 || len(ends) > 0; reset++ { // what is on its way may fill the budget later
		if r := within(t, ends); r.End != relay.ResetByPeer {
			t.Errorf("a stream ended by %+v", r)
		}
		if reset == streams-1 {
			t.Errorf("all of %d streams were reset, want some", streams)
		}
	}
	close(release)
}

func (b *Budget) keptNow() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept
}

func TestBudget(t *testing.T) {
	b := NewBudget(100)
	if !b.take(60) || b.take(60) || !b.take(40) || b.Used() != 100 {
		t.Errorf("used %d", b.Used())
	}
	b.give(100)
	if b.Used() != 0 {
		t.Errorf("used %d after giving all back", b.Used())
	}
}

// Who has taken nothing for the longest time makes room, not who comes last.
func TestBudgetEvictsTheLongestUnread(t *testing.T) {
	b := NewBudget(50)
	var reads, stalled, comes stream
	keeps(t, b, &reads, 40)
	keeps(t, b, &stalled, 40)
	b.drop(&reads, 10)
	keeps(t, b, &comes, 40, &stalled)
	b.drop(&stalled, 40)
	keeps(t, b, &comes, 40, &reads)
	b.drop(&reads, 30)
	b.drop(&comes, 80)
	if b.kept != 0 || b.holders.Len() != 0 {
		t.Errorf("%d bytes of %d streams are left", b.kept, b.holders.Len())
	}
}

// One that is evicted makes room from then on, however late it is failed, and
// whatever it keeps until then: nobody else is evicted for the same room. As
// many are as it takes.
func TestBudgetEvictsNoMoreThanNeeded(t *testing.T) {
	b := NewBudget(50)
	var first, second, third, fourth, comes stream
	for _, s := range []*stream{&first, &second, &third, &fourth} {
		keeps(t, b, s, 25)
	}
	keeps(t, b, &comes, 10, &first)
	keeps(t, b, &comes, 10)
	keeps(t, b, &first, 5)
	b.drop(&first, 30)
	keeps(t, b, &comes, 40, &second, &third)
	if b.kept != 85 || b.holders.Len() != 2 {
		t.Errorf("%d bytes of %d streams are kept, want 85 of 2", b.kept, b.holders.Len())
	}
}

// keeps has a stream keep n bytes, and wants those evicted for it.
func keeps(t *testing.T, b *Budget, s *stream, n int, want ...*stream) {
	t.Helper()
	if got := b.keep(s, n); !slices.Equal(got, want) {
		t.Errorf("evicts %p, want %p", got, want)
	}
}

// Windows that streams were granted come back when these end.
func TestBudgetIsGivenBack(t *testing.T) {
	budget := NewBudget(64 << 20)
	w := newWorld(t, forward(application(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })),
		worldOptions{server: ServerConfig{Budget: budget}})
	app, done := w.connect("10.0.0.1:80")
	app.Write(make([]byte, 32<<20))
	if budget.Used() == 0 {
		t.Error("bulk did not grow the window")
	}
	app.CloseWrite()
	within(t, done)
	if err := w.pool.Run(ended(t)); err == nil {
		t.Error("Run returned without an error")
	}
	within(t, w.ended)
	if budget.Used() != 0 {
		t.Errorf("%d bytes not given back", budget.Used())
	}
}

func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// A stream whose application does not read holds no more than its window.
func TestReceivedBytesAreBounded(t *testing.T) {
	accept := make(chan struct{})
	streams := make(chan *ServerStream, 1)
	w := newWorld(t, func(ctx context.Context, s *ServerStream) {
		streams <- s
		<-accept
	})
	defer close(accept)
	app, _ := w.connect("10.0.0.1:80")
	fill(app)
	s := within(t, streams)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inbox.held > firstWindow || s.inbox.window < 0 {
		t.Errorf("%d bytes held before the stream was accepted", s.inbox.held)
	}
}

// Relaying a message must allocate nothing. Without TLS: crypto/tls itself
// allocates 24 bytes for each record that it reads.
func TestAllocatesNothingPerMessage(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool forget")
	}
	apps := plainWorld(t, 4)
	p := make([]byte, 1000)
	message := func() {
		for _, app := range apps {
			exchangeOnce(t, app, p)
		}
	}
	for range 100 {
		message()
	}
	var before, after runtime.MemStats
	const rounds = 1000
	runtime.ReadMemStats(&before)
	for range rounds {
		message()
	}
	runtime.ReadMemStats(&after)
	per := float64(after.Mallocs-before.Mallocs) / float64(rounds*len(apps))
	if per > 0.25 { // WINDOW_UPDATE, once in 32 messages
		t.Errorf("%.2f allocations per message and its echo", per)
	}
}

// plainWorld relays n connections through both ends, without TLS.
func plainWorld(t testing.TB, n int) []*net.TCPConn {
	t.Helper()
	a, b := tcpPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	target := application(t, echo)
	near, err := NewWire(a)
	must(t, err)
	far, err := NewWire(b)
	must(t, err)
	running.Go(func() { Serve(ctx, far, ServerConfig{}, forward(target)) })
	c := newConn(near, nil, nil, certificateEnd{}, timing{})
	c.greetPeer()
	running.Go(func() { c.run() })
	var apps []*net.TCPConn
	for range n {
		app, relayed := tcpPair(t)
		s := c.openStream(Request{Authority: "10.0.0.1:80"}, time.Minute)
		running.Go(func() { s.Relay(relayed, nil, ignore) })
		exchangeOnce(t, app, make([]byte, 1))
		apps = append(apps, app)
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return apps
}
