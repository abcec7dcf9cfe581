package proxy

import (
	"cmp"
	"context"
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// meterEvery is how often the bytes of a connection are counted. What passes in
// between may be more than a limit allows.
const meterEvery = 100 * time.Millisecond

// meter has the bytes of a connection counted that carries no HTTP, if limits of
// bytes hold for it, from now on. It may be called again.
func (p *Proxy) meter(c *Connection) {
	if !c.carries() || len(p.byteLimits(c)) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.metered || c.counts == nil {
		return
	}
	c.metered = true
	sent, received := c.moved()
	go p.count(c, sent+received)
}

// carries reports whether bytes of the connection pass that are not counted yet.
func (c *Connection) carries() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts != nil && !c.metered
}

// byteLimits are those that hold for a connection as a whole.
func (p *Proxy) byteLimits(c *Connection) []policy.AppliedLimit {
	facts, inbound := c.whole(p.State.Snapshot())
	if !inbound {
		return nil
	}
	return policy.Limits(nil, p.State.Snapshot(), &facts, model.LimitBytes)
}

// count charges what passes until the connection ends or no limit holds for it,
// and ends it when there was more than a limit allows.
func (p *Proxy) count(c *Connection, counted int64) {
	ticker := time.NewTicker(meterEvery)
	defer ticker.Stop()
	for ended := false; !ended; {
		select {
		case <-ticker.C:
		case <-c.ctx.Done():
			ended = true
		}
		limits := p.byteLimits(c)
		c.mu.Lock()
		total := c.record.Sent + c.record.Received
		if c.counts != nil {
			sent, received := c.moved()
			total = sent + received
		}
		if len(limits) == 0 {
			c.metered = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if total > counted {
			p.charge(c, limits, uint64(total-counted))
			counted = total
		}
	}
}

// charge counts bytes that have passed against limits, all of them.
func (p *Proxy) charge(c *Connection, limits []policy.AppliedLimit, n uint64) {
	for i := range limits {
		a := &limits[i]
		as := p.countsAs(c.pod, a)
		o := p.limits.Charge(context.WithoutCancel(c.ctx), as, a, n)
		if o.Alone {
			p.Recorder.LimitsAlone()
		}
		if o.Allowed {
			// What has just passed may be too much for anything to follow.
			o = p.limits.Charge(context.WithoutCancel(c.ctx), as, a, 0)
		}
		switch {
		case o.Allowed:
		case a.DryRun:
			c.mu.Lock()
			c.record.DryRun = cmp.Or(c.record.DryRun, a.Policy)
			c.mu.Unlock()
		default:
			c.Deny(policy.Decision{Policy: a.Policy, Reason: policy.ReasonLimited})
		}
	}
}
