package caclient

import (
	"math/rand/v2"
	"sync"
	"time"
)

// plan is when renewals are due. Chance alone has twice as many fall into some
// second as into the one in the middle, and a node is to notice none of it.
type plan struct {
	mu  sync.Mutex
	due map[int64]int // how many, by the second of wall time
}

// choices is among how many moments a renewal takes the one with the fewest
// others in its second.
const choices = 8

// enter chooses when, within so much before latest. The renewal is left once
// that is over.
func (p *plan) enter(latest time.Time, within time.Duration) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best time.Time
	for i := range choices {
		t := latest.Add(-time.Duration(rand.Float64() * float64(within)))
		if i == 0 || p.due[t.Unix()] < p.due[best.Unix()] {
			best = t
		}
	}
	if p.due == nil {
		p.due = map[int64]int{}
	}
	p.due[best.Unix()]++
	return best
}

func (p *plan) leave(due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	second := due.Unix()
	if p.due[second]--; p.due[second] == 0 {
		delete(p.due, second)
	}
}
