package proxy

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// meterEvery is how often stores are asked to count the bytes of a connection,
// and those of requests are counted: what passes in between may be more than a
// limit allows, but waits for nobody.
const meterEvery = 100 * time.Millisecond

// meterIdle is how seldom it becomes of a request while nothing of it passes.
const meterIdle = 3 * time.Second

// meter counts the bytes of a connection that carries no HTTP: buffer by buffer
// against limits of this node, and from time to time against those in stores.
type meter struct {
	proxy  *Proxy
	conn   *Connection
	limits atomic.Pointer[byteLimits]

	uncounted atomic.Int64 // in stores
	counting  atomic.Bool  // by a goroutine that lives only as long as bytes pass
}

// byteLimits are those that hold for a connection as a whole.
type byteLimits struct{ here, shared []policy.AppliedLimit }

func (l *byteLimits) none() bool { return len(l.here)+len(l.shared) == 0 }

// meter has the bytes of a connection counted that carries no HTTP, if limits of
// bytes hold for it, from now on; it is called again when policies change.
func (p *Proxy) meter(c *Connection) {
	for {
		s := p.State.Snapshot()
		facts, whole := c.whole(s)
		if !whole {
			return
		}
		var limits byteLimits
		for _, a := range policy.Limits(nil, s, &facts, model.LimitBytes) {
			if a.Store == nil {
				limits.here = append(limits.here, a)
			} else {
				limits.shared = append(limits.shared, a)
			}
		}
		c.meterBy(&limits)
		if p.State.Snapshot() == s {
			return
		}
	}
}

func (c *Connection) meterBy(limits *byteLimits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.counts == nil, c.metered == nil && limits.none():
	case limits.none():
		c.counts.Tell(nil)
	default:
		if c.metered == nil {
			c.metered = &meter{proxy: c.proxy, conn: c}
		}
		c.metered.limits.Store(limits)
		c.counts.Tell(c.metered.passed)
	}
}

// meterFirst counts what had to be read to know that it is no HTTP.
func (c *Connection) meterFirst() error {
	c.mu.Lock()
	m := c.metered
	n := int64(0)
	if c.counts != nil {
		sent, received := c.moved()
		n = sent + received
	}
	c.mu.Unlock()
	if m == nil || n == 0 {
		return nil
	}
	return m.passed(int(n))
}

// passed is a relay.Meter.
func (m *meter) passed(n int) error {
	limits := m.limits.Load()
	if len(limits.shared) > 0 {
		m.uncounted.Add(int64(n))
		if m.counting.CompareAndSwap(false, true) {
			go m.countInStores()
		}
	}
	return m.charge(limits.here, uint64(n))
}

// countInStores ends once nothing has passed for a while.
func (m *meter) countInStores() {
	ticker := time.NewTicker(meterEvery)
	defer ticker.Stop()
	for {
		if n := m.uncounted.Swap(0); n > 0 {
			_ = m.charge(m.limits.Load().shared, uint64(n))
		} else {
			m.counting.Store(false)
			if m.uncounted.Load() == 0 || !m.counting.CompareAndSwap(false, true) {
				return
			}
		}
		<-ticker.C
	}
}

// charge counts bytes that have passed against limits, all of them. Beyond one
// it ends the connection, and says why.
func (m *meter) charge(limits []policy.AppliedLimit, n uint64) (err error) {
	p, c := m.proxy, m.conn
	for i := range limits {
		a := &limits[i]
		as := p.countsAs(c.pod, a)
		o := p.limits.Charge(context.Background(), as, a, n)
		if o.Alone {
			p.Recorder.LimitsAlone()
		}
		if o.Allowed {
			// What has just passed may be too much for anything to follow.
			o = p.limits.Charge(context.Background(), as, a, 0)
		}
		switch {
		case o.Allowed:
		case a.DryRun:
			c.mu.Lock()
			c.record.DryRun = cmp.Or(c.record.DryRun, a.Policy)
			c.mu.Unlock()
		default:
			d := policy.Decision{Policy: a.Policy, Reason: policy.ReasonLimited}
			c.Deny(d)
			err = denied{Decision: d}
		}
	}
	return err
}

// exchangeBytes counts the bytes of a request's body and its response's against
// limits, while they pass. The request goes to its end: what comes then is
// refused.
type exchangeBytes struct {
	mu      sync.Mutex // guards what follows
	counted int64
	again   *time.Timer // nil if there is no limit
	pause   time.Duration
	over    bool
}

// countBytes counts from now on, if a limit of bytes holds.
func (x *exchange) countBytes() {
	b := &x.bytes
	b.mu.Lock()
	defer b.mu.Unlock()
	limited := slices.ContainsFunc(x.limits, func(a policy.AppliedLimit) bool { return a.Limit.Unit == model.LimitBytes })
	if limited && !b.over {
		b.pause = meterEvery
		b.again = time.AfterFunc(b.pause, x.countMore)
	}
}

func (x *exchange) countMore() {
	passed := x.chargeUpTo(x.live.Sent.Load() + x.live.Received.Load())
	b := &x.bytes
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pause = min(2*b.pause, meterIdle); passed {
		b.pause = meterEvery
	}
	if !b.over {
		b.again.Reset(b.pause)
	}
}

// countLast is for the end.
func (x *exchange) countLast(total int64) {
	b := &x.bytes
	b.mu.Lock()
	again := b.again
	b.over = true
	b.mu.Unlock()
	if again != nil {
		again.Stop()
		x.chargeUpTo(total)
	}
}

// chargeUpTo counts what is not counted yet of so many bytes, if there are any.
func (x *exchange) chargeUpTo(total int64) (some bool) {
	b := &x.bytes
	b.mu.Lock()
	n := total - b.counted
	b.counted = max(b.counted, total)
	b.mu.Unlock()
	if n <= 0 {
		return false
	}
	p, c := x.requests.proxy, x.requests.conn
	for i := range x.limits {
		if a := &x.limits[i]; a.Limit.Unit == model.LimitBytes {
			_ = p.limits.Charge(context.Background(), p.countsAs(c.pod, a), a, uint64(n))
		}
	}
	return true
}
