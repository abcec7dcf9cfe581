package proxy

import (
	"net/netip"
	"sync"
)

// A pod's share bounds what is held for it, so that neither the pod nor those
// who call it can use up what others need.
type share struct {
	// One slot for each connection that the pod makes; callers take from
	// another share, so that they cannot keep the pod from calling.
	outbound chan struct{}
	// One slot for each connection to the pod: captured, mTLS, and each
	// stream of mTLS, which has a connection to the application.
	inbound    chan struct{}
	handshakes *portions
	// Bytes of bodies that have come and are held for decisions which look at
	// them, until they have left.
	bodies *portions
}

// maxBodies bounds those, maxBodiesFromSource the ones of one caller, who could
// else keep all others from asking, and maxBody the ones of one request.
const (
	maxBodies           = 16 << 20
	maxBodiesFromSource = 4 << 20
	maxBody             = 1 << 20
)

func newShare(conns int) *share {
	s := &share{
		outbound: make(chan struct{}, conns), inbound: make(chan struct{}, conns),
		handshakes: newPortions(maxHandshakes, maxHandshakesFromSource),
		bodies:     newPortions(maxBodies, maxBodiesFromSource),
	}
	s.bodies.halve = true
	return s
}

// take takes a slot if there is one; give gives it back.
func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func give(slots chan struct{}) { <-slots }

// Handshakes under way at a time, to one pod: callers that have proven nothing
// yet. A peer's pool makes one at a time, so that a source with many is none.
const (
	maxHandshakes           = 1024
	maxHandshakesFromSource = 64
)

// portions are of something that callers of a pod share. No source gets more
// than a portion of it.
type portions struct {
	most, mostOfSource int
	// halve gives no source more than half of what the others leave, so that
	// a few who take what they can leave something to all who come.
	halve bool

	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

func newPortions(most, mostOfSource int) *portions {
	return &portions{most: most, mostOfSource: mostOfSource, from: map[netip.Addr]int{}}
}

// take takes n if there are that many for the source; then give must follow.
func (p *portions) take(source netip.Addr, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.from[source]
	left := p.most - (p.all - own) // by the others
	if p.halve {
		left /= 2
	}
	if own+n > min(p.mostOfSource, left) {
		return false
	}
	p.all += n
	p.from[source] += n
	return true
}

func (p *portions) give(source netip.Addr, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all -= n
	if p.from[source] -= n; p.from[source] == 0 {
		delete(p.from, source)
	}
}

// taken is how much of it is in use.
func (p *portions) taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}
