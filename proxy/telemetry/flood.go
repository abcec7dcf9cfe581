package telemetry

import (
	"net/netip"
	"sync"
)

const (
	// floodAllowed lines of a kind are written per interval.
	floodAllowed = 5
	// floodKinds are told apart; what else there is shares one allowance.
	floodKinds = 1024
)

// kind is what makes two denials or failures the same to a reader.
type kind struct {
	message     string
	direction   Direction
	source      netip.Addr
	destination netip.AddrPort
	reason      string
	policy      string
}

// repeated is a kind of which lines were not written.
type repeated struct {
	kind  kind
	count int
}

// flood decides which lines are written. It holds a bounded number of kinds,
// for one interval.
type flood struct {
	mu    sync.Mutex
	kinds map[kind]int
}

func newFlood() *flood { return &flood{kinds: map[kind]int{}} }

// admit reports whether a line of this kind may be written.
func (f *flood) admit(k kind) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.kinds[k]; !ok && len(f.kinds) >= floodKinds {
		k = kind{message: k.message, reason: "various"}
	}
	f.kinds[k]++
	return f.kinds[k] <= floodAllowed
}

// flush ends the interval and returns what was held back in it.
func (f *flood) flush() []repeated {
	f.mu.Lock()
	defer f.mu.Unlock()
	var held []repeated
	for k, n := range f.kinds {
		if n > floodAllowed {
			held = append(held, repeated{k, n - floodAllowed})
		}
	}
	clear(f.kinds)
	return held
}
