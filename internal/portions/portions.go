// Package portions divides something of which there is only so much among those
// who take of it, so that none of them can use up what the others need.
//
// What does not belong here: waiting. Who gets nothing is told so at once.
package portions

import "sync"

// Portions are of something that takers share. No taker gets more than a
// portion of it.
type Portions[K comparable] struct {
	most, mostOfTaker int
	halve             bool

	mu  sync.Mutex
	all int
	of  map[K]int
}

// New shares out most in all, and mostOfTaker to each. To halve gives no taker
// more than half of what the others leave, so that a few who take what they can
// leave something to all who come.
func New[K comparable](most, mostOfTaker int, halve bool) *Portions[K] {
	return &Portions[K]{most: most, mostOfTaker: mostOfTaker, halve: halve, of: map[K]int{}}
}

// Take takes n if there are that many for the taker; then Give must follow.
func (p *Portions[K]) Take(taker K, n int) bool {
	if n == 0 {
		return true // and nobody to remember
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.of[taker]
	left := p.most - (p.all - own) // by the others
	if p.halve {
		left /= 2
	}
	if own+n > min(p.mostOfTaker, left) {
		return false
	}
	p.all += n
	p.of[taker] += n
	return true
}

// Give gives back n of what the taker has.
func (p *Portions[K]) Give(taker K, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all -= n
	if p.of[taker] -= n; p.of[taker] == 0 {
		delete(p.of, taker)
	}
}

// Taken is how much of it is in use.
func (p *Portions[K]) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}
