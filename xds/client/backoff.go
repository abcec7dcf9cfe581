package client

import (
	"math/rand/v2"
	"time"
)

const (
	minBackoff = 10 * time.Millisecond
	maxBackoff = 15 * time.Second
	// usefulSession is how long a connection must have lasted for its end
	// to be no failure but the usual course of things: a restart, a
	// connection's maximal age, a balancer's move.
	usefulSession = time.Second
)

// backoff spaces attempts to connect.
type backoff struct{ next time.Duration }

// after says how long to wait once a connection has ended: after a useful one
// not at all, else 10 ms, doubling to 15 s. Up to half of that is taken off at
// random, so that the proxies of a mesh do not return in step.
func (b *backoff) after(useful bool) time.Duration {
	if useful {
		b.next = 0
		return 0
	}
	d := max(b.next, minBackoff)
	b.next = min(2*d, maxBackoff)
	return d - rand.N(d/2)
}
