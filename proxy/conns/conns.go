// Package conns is the table of live connections.
//
// A connection enters it before its policy check, so that a policy which
// changes during the check cannot be missed: whoever changes first, one of the
// two evaluations sees the other's work. When the mesh changes, every checked
// connection is evaluated again and those now denied are ended. What does not
// belong here: how a decision is made (proxy/policy) and how a connection is
// ended.
package conns

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/internal/processors"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Conn is a connection that the table can look up, judge and end.
type Conn interface {
	comparable
	// ID is the id that both nodes log for the connection.
	ID() string
	// Review decides about the connection as this snapshot sees it, and ends
	// what goes on within it and is not allowed by itself. It is false where
	// no policy applies: outbound connections are judged at the far side.
	Review(*model.Snapshot, time.Time) (policy.Decision, bool)
	// Deny ends the connection for this reason. It must not block, and may
	// be called again, and for a connection that is ending by itself.
	Deny(policy.Decision)
}

// remembered is how many ended connections can still be looked up by id.
const remembered = 4096

// Table is the set of live connections, and the last ended ones.
type Table[C Conn] struct {
	mu    sync.Mutex
	live  map[C]struct{}
	ended []C // a ring
	next  int
}

// NewTable is an empty table.
func NewTable[C Conn]() *Table[C] { return &Table[C]{live: map[C]struct{}{}} }

// Add enters a connection; it must happen before its policy check.
func (t *Table[C]) Add(c C) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[c] = struct{}{}
}

// End takes a connection out of the live ones; it is remembered for a while.
func (t *Table[C]) End(c C) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, c)
	if len(t.ended) < remembered {
		t.ended = append(t.ended, c)
		return
	}
	t.ended[t.next] = c
	t.next = (t.next + 1) % remembered
}

// Those lists the live connections that are wanted, in no order. It asks with the
// table locked, so wanted must not wait, nor use the table.
func (t *Table[C]) Those(wanted func(C) bool) []C {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []C
	for c := range t.live {
		if wanted(c) {
			out = append(out, c)
		}
	}
	return out
}

// Live lists the live connections, in no order.
func (t *Table[C]) Live() []C {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]C, 0, len(t.live))
	for c := range t.live {
		out = append(out, c)
	}
	return out
}

// Ended lists the ended connections that are remembered, in no order.
func (t *Table[C]) Ended() []C {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.ended)
}

// Find lists the connections with this id, live and remembered: on one node
// a connection may have both of its sides.
func (t *Table[C]) Find(id string) []C {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []C
	for c := range t.live {
		if c.ID() == id {
			out = append(out, c)
		}
	}
	for _, c := range t.ended {
		if c.ID() == id {
			out = append(out, c)
		}
	}
	return out
}

// Run evaluates the live connections again whenever the snapshot changes, and
// at the edges of its policies' time windows. It ends with the context.
func (t *Table[C]) Run(ctx context.Context, s *state.State) error {
	for {
		snapshot, changed := s.Watch()
		now := time.Now()
		t.Evaluate(s, now)
		edge, stop := alarm(policy.NextEdge(snapshot, now))
		select {
		case <-changed:
		case <-edge:
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
		stop()
	}
}

// lengthy is how many connections keep a processor busy for about a millisecond.
const lengthy = 500

// Evaluate evaluates the live connections again, also for a reason that is not
// in the snapshot: each in the newest, as it may have been allowed by that alone.
func (t *Table[C]) Evaluate(s *state.State, now time.Time) {
	for i, c := range t.Live() {
		if i%lengthy == lengthy-1 {
			processors.Busy()
		}
		if d, checked := c.Review(s.Snapshot(), now); checked && !d.Allowed {
			c.Deny(d)
		}
	}
}

// step bounds a wait for a wall-clock moment: timers stand still while a
// machine sleeps.
const step = 10 * time.Second

func alarm(at time.Time) (<-chan time.Time, func()) {
	if at.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(min(time.Until(at), step))
	return timer.C, func() { timer.Stop() }
}
