package lifecycle

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/test/e2e"
)

// path is a way that connections take.
type path struct{ from, to string }

// everywhere is a path for every listener of every node: out to the other
// node, in from it, within the node, and in plaintext.
var everywhere = []path{
	{"mesh/client", "198.18.2.10:8080"},    // a to b
	{"mesh/server", "198.18.1.10:8080"},    // b to a
	{"mesh/client", "198.18.1.20:8080"},    // within a
	{"mesh/server", "198.18.2.11:8080"},    // within b
	{"outside/target", "198.18.1.20:8080"}, // plaintext to a
	{"outside/plain", "198.18.2.10:8080"},  // plaintext to b
	{"mesh/client", "[fd00:7ac1:2::10]:8080"},
}

// serveEverywhere answers at the end of every path.
func serveEverywhere(m *e2e.Mesh) {
	for _, pod := range []string{"mesh/client", "mesh/near", "mesh/server", "mesh/server2", "outside/target"} {
		m.Serve(pod, ":8080", e2e.Echo)
	}
}

// load opens connections along every path, several at a time, one after the
// other, and expects each to be served.
type load struct {
	t       *testing.T
	m       *e2e.Mesh
	stop    chan struct{}
	clients sync.WaitGroup

	mu       sync.Mutex
	epoch    int
	mayBeCut int // connections of epochs up to this
	cut      int
	served   map[path]int // of the current epoch
	failure  error
	news     chan struct{} // closed and renewed when anything of this changes
}

// clientsPerPath is how many connections are open at a time.
const clientsPerPath = 3

// startLoad begins, and ends with the test at the latest.
func startLoad(t *testing.T, m *e2e.Mesh) *load {
	t.Helper()
	l := &load{t: t, m: m, stop: make(chan struct{}), mayBeCut: -1, served: map[path]int{}, news: make(chan struct{})}
	for _, p := range everywhere {
		for range clientsPerPath {
			l.clients.Go(func() { l.client(p) })
		}
	}
	end := sync.OnceFunc(func() {
		close(l.stop)
		l.clients.Wait()
	})
	t.Cleanup(end)
	l.awaitServed(3)
	return l
}

func (l *load) client(p path) {
	for {
		select {
		case <-l.stop:
			return
		default:
			l.call(p, func() {})
		}
	}
}

// call is one connection; dialed is called when the kernel has accepted it.
func (l *load) call(p path, dialed func()) {
	var epoch int
	l.note(func() { epoch = l.epoch })
	c, err := l.m.Pod(p.from).Dial(l.t.Context(), p.to)
	if err == nil {
		l.note(dialed)
		_, err = e2e.Exchange(c)
	}
	l.note(func() { l.ended(p, epoch, err) })
}

func (l *load) ended(p path, epoch int, err error) {
	switch {
	case err == nil && epoch == l.epoch:
		l.served[p]++
	case err == nil:
	case epoch <= l.mayBeCut && !errors.Is(err, syscall.ECONNREFUSED):
		l.cut++
	case l.failure == nil:
		l.failure = fmt.Errorf("from %s to %s, opened in epoch %d: %w", p.from, p.to, epoch, err)
	}
}

func (l *load) note(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.news)
	l.news = make(chan struct{})
}

// newEpoch counts anew, from connections that begin after this.
func (l *load) newEpoch() {
	l.note(func() {
		l.epoch++
		clear(l.served)
	})
}

// kill runs what may cut connections that were opened before it returns, but
// may not refuse one. Those opened after it must be served.
func (l *load) kill(end func() error) {
	l.t.Helper()
	l.note(func() { l.mayBeCut = l.epoch })
	if err := end(); err != nil {
		l.t.Fatal(err)
	}
	l.newEpoch()
}

// awaitServed waits until so many connections of this epoch were served along
// each path.
func (l *load) awaitServed(n int) {
	l.t.Helper()
	l.await(fmt.Sprintf("%d served along each path", n), func(p path) bool { return l.served[p] >= n })
}

// queue opens one more connection along each of the paths, and returns when
// the kernel has accepted all of them.
func (l *load) queue(paths ...path) {
	l.t.Helper()
	queued := map[path]bool{}
	for _, p := range paths {
		l.clients.Go(func() { l.call(p, func() { queued[p] = true }) })
	}
	l.await("the kernel accepts", func(p path) bool { return queued[p] || !slices.Contains(paths, p) })
}

func (l *load) await(what string, reached func(path) bool) {
	l.t.Helper()
	deadline := time.NewTimer(e2e.Patience)
	defer deadline.Stop()
	for {
		l.mu.Lock()
		ok, err, news := true, l.failure, l.news
		for _, p := range everywhere {
			ok = ok && reached(p)
		}
		state := fmt.Sprintf("epoch %d, served %v", l.epoch, l.served)
		l.mu.Unlock()
		if err != nil {
			l.t.Fatal(err)
		}
		if ok {
			return
		}
		select {
		case <-news:
		case <-deadline.C:
			l.t.Fatalf("%s: not reached: %s", what, state)
		}
	}
}
