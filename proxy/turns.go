package proxy

import (
	"container/list"
	"context"
	"sync"

	"github.com/tacit-mesh/tacit/internal/portions"
)

// turns has takers, such as callers or pods, wait for slots of which no taker
// gets more than half of what the others leave.
type turns[K comparable] struct {
	room *portions.Portions[K]

	mu sync.Mutex
	// waiting are takers that have all that they may, and who waits for them,
	// each a channel that is closed once it has its slot.
	waiting map[K]*list.List
}

func newTurns[K comparable](slots int) *turns[K] {
	return &turns[K]{room: portions.New[K](slots, slots, true), waiting: map[K]*list.List{}}
}

// take waits for a slot until the context ends, and reports whether it got one;
// then give must follow.
func (t *turns[K]) take(ctx context.Context, taker K) bool {
	t.mu.Lock()
	line := t.waiting[taker]
	if line == nil {
		if t.room.Take(taker, 1) {
			t.mu.Unlock()
			return true
		}
		line = list.New()
		t.waiting[taker] = line
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
		delete(t.waiting, taker)
	}
	return false
}

// give gives a slot back, for which another taker may be waiting.
func (t *turns[K]) give(taker K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.room.Give(taker, 1)
	for next, line := range t.waiting { // in random order, so that none is always the last
		for line.Len() > 0 && t.room.Take(next, 1) {
			close(line.Remove(line.Front()).(chan struct{}))
		}
		if line.Len() == 0 {
			delete(t.waiting, next)
		}
	}
}
