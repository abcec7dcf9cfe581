// Package ratelimit counts requests and bytes against limits, on this node or
// together with others in a Redis.
//
// It counts by the generic cell rate algorithm: of each count it keeps the one
// moment at which it would be empty again. What does not belong here: which
// limits hold for a request (proxy/policy) and what is done beyond them.
package ratelimit

import (
	"context"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/proxy/kept"
	"github.com/tacit-mesh/tacit/proxy/policy"
)

// maxCounts bounds the counts of this node. Beyond it the keys of one limit
// share a count.
const maxCounts = 100_000

// Outcome is what a limit says.
type Outcome struct {
	Allowed bool
	// RetryAfter is when one more would be allowed, if nothing else comes.
	RetryAfter time.Duration
	// Alone says that the store which the counts are shared in is away, and
	// this node has counted for itself.
	Alone bool
}

// Limiter holds the counts of one node.
type Limiter struct {
	stores stores

	mu     sync.Mutex // guards what follows
	counts map[count]time.Time
	swept  time.Time
}

// count is what is counted apart from all else.
type count struct {
	policy string
	index  int
	key    string
}

// New has counted nothing yet. dial connects to stores.
func New(dial Dialer) *Limiter {
	return &Limiter{
		counts: map[count]time.Time{},
		stores: stores{dial: dial, timeout: storeTimeout, pause: storePause, clients: kept.New[storeKey, *store](maxStores, maxStoresEach)},
	}
}

// Close ends the connections to stores.
func (l *Limiter) Close() { l.stores.clients.Close() }

// Take counts n if that many are allowed now; in a store, as who the Dialer
// takes as for.
func (l *Limiter) Take(ctx context.Context, as string, a *policy.AppliedLimit, n uint64) Outcome {
	return l.count(ctx, as, a, n, false)
}

// Charge counts n, also beyond the limit: what has happened already. With 0 it
// only asks.
func (l *Limiter) Charge(ctx context.Context, as string, a *policy.AppliedLimit, n uint64) Outcome {
	return l.count(ctx, as, a, n, true)
}

// Forget ends the connections to stores that were made as somebody.
func (l *Limiter) Forget(as string) { l.stores.clients.Forget(as) }

func (l *Limiter) count(ctx context.Context, as string, a *policy.AppliedLimit, n uint64, charge bool) Outcome {
	if a.Store != nil {
		if o, err := l.stores.count(ctx, as, a, n, charge); err == nil {
			return o
		}
	}
	o := l.countHere(a, n, charge, time.Now())
	o.Alone = a.Store != nil
	return o
}

func (l *Limiter) countHere(a *policy.AppliedLimit, n uint64, charge bool, now time.Time) Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.find(a, now)
	next, o := advance(l.counts[k], now, a, n, charge)
	if next.After(now) {
		l.counts[k] = next
	}
	return o
}

// find makes room for a count: one whose moment has passed is as good as none.
func (l *Limiter) find(a *policy.AppliedLimit, now time.Time) count {
	k := count{a.Policy, a.Index, a.Key}
	if _, ok := l.counts[k]; ok || len(l.counts) < maxCounts {
		return k
	}
	if now.Sub(l.swept) > time.Second {
		l.swept = now
		for other, empty := range l.counts {
			if !empty.After(now) {
				delete(l.counts, other)
			}
		}
	}
	if len(l.counts) >= maxCounts {
		k.key = ""
	}
	return k
}

// advance moves the moment at which a count is empty by n, if the burst allows
// that, or in any case.
func advance(empty, now time.Time, a *policy.AppliedLimit, n uint64, charge bool) (time.Time, Outcome) {
	each := float64(a.Limit.Interval) / float64(max(a.Limit.Amount, 1))
	burst := span(each, max(a.Limit.Burst, 1))
	if empty.Before(now) {
		empty = now
	}
	next := empty.Add(span(each, n))
	asked := next
	if charge {
		asked = empty
	}
	over := asked.Sub(now) - burst
	if charge && over >= 0 || over > 0 {
		if !charge {
			next = empty
		}
		return next, Outcome{RetryAfter: max(over, time.Millisecond)}
	}
	return next, Outcome{Allowed: true}
}

// longestSpan is as good as for ever, and far from what a Duration can hold:
// what has passed may be any number of bytes.
const longestSpan = 50 * 365 * 24 * time.Hour

// span is the time in which n become allowed, where one takes each nanoseconds.
func span(each float64, n uint64) time.Duration {
	return time.Duration(min(each*float64(n), float64(longestSpan)))
}
