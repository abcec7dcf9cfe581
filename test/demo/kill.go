package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

const (
	redisService = "198.19.0.63:6379"
	loadClients  = 16
	afterwards   = 300 // connections that must succeed once the proxy is back
)

// kill ends each node's proxy with SIGKILL while clients keep opening
// connections, lets as many more come meanwhile, and starts another proxy once
// all of those are connected.
func (d *Demo) kill(ctx context.Context) error {
	rows := [][]string{{"killed", "served before", "in flight, cut", "waited", "longest wait", "served after", "refused"}}
	for _, name := range []string{"a", "b"} {
		node := d.world.Node(name)
		l := &load{pod: d.world.Pod("shop/worker")}
		if err := l.run(ctx, func(ctx context.Context) error { return d.killUnder(ctx, node, l) }); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		waited, longest := l.waits()
		rows = append(rows, []string{
			fmt.Sprintf("%s's, of the %s", name, map[string]string{"a": "clients", "b": "server"}[name]), fmt.Sprint(l.before),
			fmt.Sprint(l.cut), fmt.Sprint(waited), fmt.Sprintf("%d ms", longest.Milliseconds()), fmt.Sprint(l.after), "0",
		})
	}
	d.out.table(rows)
	d.out.proven("connections made while the proxy was dead waited in the kernel and were served: none refused, none lost")
	return nil
}

func (d *Demo) killUnder(ctx context.Context, node *world.Node, l *load) error {
	if err := l.wait(ctx, func() bool { return l.before >= afterwards }); err != nil {
		return fmt.Errorf("load before the kill: %w", err)
	}
	l.setPhase(dying)
	if err := node.Proxy().Kill(); err != nil {
		return err
	}
	l.setPhase(dead)
	for range loadClients {
		l.clients.Go(func() { l.once(ctx) })
	}
	if err := l.wait(ctx, func() bool { return l.waiting >= loadClients }); err != nil {
		return fmt.Errorf("connections to a dead proxy: %w", err)
	}
	if err := node.StartProxy(ctx); err != nil {
		return err
	}
	l.setPhase(back)
	if err := l.wait(ctx, func() bool { return l.waiting == 0 }); err != nil {
		return fmt.Errorf("connections made meanwhile: %w", err)
	}
	if err := l.wait(ctx, func() bool { return l.after >= afterwards }); err != nil {
		return fmt.Errorf("load after the kill: %w", err)
	}
	return nil
}

// phase is what the proxy is doing when a connection is opened.
type phase int

const (
	alive phase = iota
	dying       // SIGKILL is sent; it may still accept
	dead
	back
)

func (p phase) String() string {
	return [...]string{"before the kill", "at the time of the kill", "while the proxy was dead", "after its return"}[p]
}

// load opens connections to Redis, one request each, from several clients.
type load struct {
	pod     *world.Pod
	clients sync.WaitGroup

	mu      sync.Mutex
	phase   phase
	before  int
	cut     int // opened before the kill, and ended by it
	waiting int // open connections made while the proxy is dead
	waited  []time.Duration
	after   int
	failure error
	news    chan struct{} // closed and renewed when anything of this changes
}

// run keeps the load up while fn runs.
func (l *load) run(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	l.news = make(chan struct{})
	stop := make(chan struct{})
	for range loadClients {
		l.clients.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-stop:
					return
				default:
					l.once(ctx)
				}
			}
		})
	}
	err := fn(ctx)
	close(stop)
	l.clients.Wait()
	return err
}

// once is one connection.
func (l *load) once(ctx context.Context) {
	began, opened := time.Now(), l.note(func() {})
	c, err := l.pod.Dial(ctx, redisService)
	if err == nil {
		if opened == dead {
			l.note(func() { l.waiting++ })
			defer l.note(func() { l.waiting-- })
		}
		err = errors.Join(ping(c), c.Close())
	}
	l.note(func() {
		switch {
		case err == nil && opened < dead:
			l.before++
		case err == nil && opened == dead:
			l.waited = append(l.waited, time.Since(began))
		case err == nil:
			l.after++
		case opened < dead && l.phase != alive && !errors.Is(err, syscall.ECONNREFUSED):
			l.cut++
		case ctx.Err() == nil && l.failure == nil:
			l.failure = fmt.Errorf("a connection opened %s: %w", opened, err)
		}
	})
}

// note changes the counts and returns the phase of that moment.
func (l *load) note(change func()) phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.news)
	l.news = make(chan struct{})
	return l.phase
}

func (l *load) setPhase(p phase) { l.note(func() { l.phase = p }) }

// wait waits until reached holds; a connection that failed ends it.
func (l *load) wait(ctx context.Context, reached func() bool) error {
	for {
		l.mu.Lock()
		ok, err, news := reached(), l.failure, l.news
		l.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *load) waits() (n int, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waited) == 0 {
		return 0, 0
	}
	return len(l.waited), slices.Max(l.waited)
}

// workerCanPing waits until a call of the worker to Redis is served again.
func (d *Demo) workerCanPing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return world.Poll(ctx, func() error {
		c, err := d.world.Pod("shop/worker").Dial(ctx, redisService)
		if err != nil {
			return err
		}
		return errors.Join(ping(c), c.Close())
	})
}
