package proxy

import (
	"container/list"
	"context"
	"net/netip"
	"sync"

	"github.com/tacit-mesh/tacit/internal/portions"
)

// turns has callers wait for slots of which no caller gets more than half of
// what the others leave.
type turns struct {
	room *portions.Portions[netip.Addr]

	mu sync.Mutex
	// waiting are callers that have all that they may, and who waits for them,
	// each a channel that is closed once it has its slot.
	waiting map[netip.Addr]*list.List
}

func newTurns(slots int) *turns {
	return &turns{room: portions.New[netip.Addr](slots, slots, true), waiting: map[netip.Addr]*list.List{}}
}

// take waits for a slot until the context ends, and reports whether it got one;
// then give must follow.
func (t *turns) take(ctx context.Context, source netip.Addr) bool {
	t.mu.Lock()
	line := t.waiting[source]
	if line == nil {
		if t.room.Take(source, 1) {
			t.mu.Unlock()
			return true
		}
		line = list.New()
		t.waiting[source] = line
	}
	turn := make(chan struct{})
	place := line.PushBack(turn)
	t.mu.Unlock()
	select {
	case <-turn:
		return true
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-turn: // it came at the last moment
		return true
	default:
	}
	line.Remove(place)
	if line.Len() == 0 {
		delete(t.waiting, source)
	}
	return false
}

// give gives a slot back, for which another caller may be waiting.
func (t *turns) give(source netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.room.Give(source, 1)
	for next, line := range t.waiting { // in random order, so that none is always the last
		for line.Len() > 0 && t.room.Take(next, 1) {
			close(line.Remove(line.Front()).(chan struct{}))
		}
		if line.Len() == 0 {
			delete(t.waiting, next)
		}
	}
}
