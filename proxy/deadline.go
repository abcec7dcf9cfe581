package proxy

import (
	"context"
	"sync"
	"time"
)

// deadline ends what takes too long, by a clock that stands still while
// nobody can make sockets, for a while at most.
type deadline struct {
	absence func() time.Duration // of the node's agent, altogether
	expire  func()
	still   func() // nil, or called now and then while the clock stands still

	mu      sync.Mutex
	timer   *time.Timer
	began   time.Time     // when the clock was last looked at
	absent  time.Duration // what the absence was by then
	left    time.Duration
	spare   time.Duration // how long it may stand still yet
	waiting bool          // for a peer, which has said that its agent is away
	stopped bool
}

// newDeadline calls expire once so much time is used up, unless it is stopped.
func newDeadline(absence func() time.Duration, d time.Duration, expire, still func()) *deadline {
	e := &deadline{absence: absence, expire: expire, still: still, left: d, spare: agentTimeout}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.run()
	return e
}

// lookEvery is how often the clock is looked at.
const lookEvery = 2 * time.Second

// wait says whether a peer is waited for that cannot go on: until it is not, the
// clock stands still.
func (d *deadline) wait(waiting bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped || d.waiting == waiting {
		return
	}
	d.timer.Stop()
	d.look()
	d.waiting = waiting
	d.run()
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stopped {
		d.stopped = true
		d.timer.Stop()
	}
	d.timer, d.expire, d.still = nil, nil, nil // which outlast their use otherwise
}

// run is called with mu held, as look is.
func (d *deadline) run() {
	d.began, d.absent = time.Now(), d.absence()
	after := d.left
	if d.waiting {
		after += d.spare
	}
	after = min(after, lookEvery)
	if d.timer == nil {
		d.timer = time.AfterFunc(max(0, after), d.check)
	} else {
		d.timer.Reset(max(0, after))
	}
}

// look takes off what has passed, and reports whether the clock stood still.
func (d *deadline) look() bool {
	passed := time.Since(d.began)
	still := d.absence() - d.absent
	if d.waiting {
		still = passed
	}
	still = min(still, passed, d.spare)
	d.spare -= still
	d.left -= passed - still
	return still > 0
}

func (d *deadline) check() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return
	}
	stood := d.look()
	if d.left > 0 {
		d.run()
		if stood && d.still != nil {
			d.still()
		}
		return
	}
	d.stopped = true
	d.expire()
}

// withTimeout is context.WithTimeout by such a clock.
func (p *Proxy) withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return p.withTimeoutAnd(ctx, timeout, nil)
}

// withTimeoutAnd also calls still now and then while the clock stands still.
func (p *Proxy) withTimeoutAnd(ctx context.Context, timeout time.Duration, still func()) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	d := newDeadline(p.Sockets.Absence, timeout, func() { cancel(context.DeadlineExceeded) }, still)
	return ctx, func() {
		d.stop()
		cancel(nil)
	}
}
