package telemetry

import (
	"net/netip"
	"sync"

	"github.com/tacit-mesh/tacit/internal/portions"
)

const (
	// floodAllowed lines of a kind are written per interval.
	floodAllowed = 5
	// floodKinds are told apart, and no source has more than half of what the
	// others leave of them. What else there is of a source shares one allowance,
	// and what else there is of too many sources another.
	floodKinds = 1024
	// auditAllowed records of a source are written per interval, of whatever
	// kinds: what one can cause must not push out what others have caused.
	auditAllowed = 10
)

// various is the reason of what is no longer told apart.
const various = "various"

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

// tally is how many lines of a kind there were, and how many of them were
// written.
type tally struct{ seen, written int }

// flood decides which lines are written. It holds a bounded number of kinds,
// for one interval.
type flood struct {
	perSource int // lines of one source, of whatever kinds; 0: any number

	mu      sync.Mutex
	kinds   map[kind]*tally
	room    *portions.Portions[netip.Addr] // of kinds
	written map[netip.Addr]int             // by sources
}

func newFlood(perSource int) *flood {
	f := &flood{perSource: perSource, kinds: map[kind]*tally{}, written: map[netip.Addr]int{}}
	f.begin()
	return f
}

// begin starts an interval.
func (f *flood) begin() {
	clear(f.kinds)
	clear(f.written)
	f.room = portions.New[netip.Addr](floodKinds, floodKinds, true)
}

// admit reports whether a line of this kind may be written.
func (f *flood) admit(k kind) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kinds[k] == nil && (f.spent(k.source) || !f.room.Take(k.source, 1)) {
		k = f.together(k)
	}
	t := f.kinds[k]
	if t == nil {
		t = new(tally)
		f.kinds[k] = t
	}
	t.seen++
	if t.written >= floodAllowed || f.spent(k.source) {
		return false
	}
	t.written++
	f.written[k.source]++
	return true
}

// spent reports whether a source has had all its lines.
func (f *flood) spent(source netip.Addr) bool {
	return f.perSource > 0 && f.written[source] >= f.perSource
}

// together is the kind of what is not told apart from others of its source, or
// of all sources.
func (f *flood) together(k kind) kind {
	k = kind{message: k.message, source: k.source, reason: various}
	if f.kinds[k] == nil && len(f.kinds) >= 2*floodKinds {
		k.source = netip.Addr{}
	}
	return k
}

// flush ends the interval and returns what was held back in it.
func (f *flood) flush() []repeated {
	f.mu.Lock()
	defer f.mu.Unlock()
	var held []repeated
	for k, t := range f.kinds {
		if t.seen > t.written {
			held = append(held, repeated{k, t.seen - t.written})
		}
	}
	f.begin()
	return held
}
