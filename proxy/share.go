package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"
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
	handshakes handshakes
	// Bytes of bodies that are held for decisions which look at them.
	bodies atomic.Int64
}

// maxBodies bounds those, and maxBody the ones of one request.
const (
	maxBodies = 16 << 20
	maxBody   = 1 << 20
)

// reserve takes n bytes for a body, if there are that many; free gives them back.
func (s *share) reserve(n int) bool {
	if s.bodies.Add(int64(n)) > maxBodies {
		s.bodies.Add(int64(-n))
		return false
	}
	return true
}

func (s *share) free(n int) { s.bodies.Add(int64(-n)) }

func newShare(conns int) *share {
	return &share{outbound: make(chan struct{}, conns), inbound: make(chan struct{}, conns)}
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

// handshakes counts those under way to a pod.
type handshakes struct {
	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

// begin reports whether one more may begin; then end must follow.
func (h *handshakes) begin(source netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all >= maxHandshakes || h.from[source] >= maxHandshakesFromSource {
		return false
	}
	if h.from == nil {
		h.from = map[netip.Addr]int{}
	}
	h.all++
	h.from[source]++
	return true
}

func (h *handshakes) end(source netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all--
	if h.from[source]--; h.from[source] == 0 {
		delete(h.from, source)
	}
}
