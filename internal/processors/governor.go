package processors

import (
	"sync"
	"sync/atomic"
)

const (
	// A round that uses more than this part of the processors there are asks for
	// twice as many, and calmRounds that use less than the other for half.
	busy, calm = 0.6, 0.3
	calmRounds = 10
	// How long bulk and updates last, from the last word of them on.
	bulkRounds, updateRounds = 10, 100
	// During an update there are so many times as many as by default, up to a
	// number. Of four the collection takes one; of two or three it would take a
	// part of each, which goes before what waits for that processor, for up to
	// 10 ms.
	updateFactor, updateMost = 2, 4
)

// governor decides how many processors there are.
type governor struct {
	count     func(n int) int // runtime.GOMAXPROCS
	byDefault func() int      // has as many as Go would by itself, and returns how many

	following atomic.Bool
	bulkSaid  atomic.Bool   // in this round
	bulkBegun chan struct{} // set before following is

	mu      sync.Mutex
	cpus    int  // of the machine, that the program may run on
	told    bool // by the operator how many
	most    int  // for load and bulk: Go's default, or as told
	now     int
	load    int // what the load needs
	calm    int // rounds since it needed that
	bulks   int // rounds left
	updates int // rounds left
}

func (g *governor) begin(cpus int, told bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cpus, g.told = cpus, told
	g.most = g.count(0)
	g.now, g.load = g.most, g.most
	g.bulkBegun = make(chan struct{}, 1)
	g.following.Store(true)
}

// round hears how many processors were in use since the last one.
func (g *governor) round(used float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now == g.most && !g.told { // then the runtime follows the control group's limit
		g.most = g.count(0)
		g.now = g.most
	}
	g.updates = max(0, g.updates-1)
	g.bulks = max(0, g.bulks-1)
	if g.bulkSaid.Swap(false) {
		g.bulks = bulkRounds
	}
	g.follow(used)
	g.set()
}

func (g *governor) follow(used float64) {
	switch {
	case g.told:
	case used > busy*float64(g.now):
		g.load, g.calm = min(2*g.now, g.most), 0
	case used >= calm*float64(g.load):
		g.calm = 0
	default:
		if g.calm++; g.calm == calmRounds {
			g.load, g.calm = max(1, g.load/2), 0
		}
	}
}

func (g *governor) bulk() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bulks = bulkRounds
	g.set()
}

func (g *governor) update() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.most == 0 {
		return // nobody follows
	}
	g.updates = updateRounds
	g.set()
}

// set has there be as many as are wanted. Called with mu held.
func (g *governor) set() {
	want := g.wanted()
	if want == g.now {
		return
	}
	if want >= g.most && !g.told { // which may have become another number
		g.most = g.byDefault()
		g.now, want = g.most, g.wanted()
	}
	if want != g.now {
		g.count(want)
		g.now = want
	}
}

// wanted is how many there are to be. Where a limit or the operator has them be
// fewer than CPUs, an update gets no more: they would run at once and use up
// the limit the sooner, and then all connections wait.
func (g *governor) wanted() int {
	switch {
	case g.updates > 0 && g.most >= g.cpus:
		return max(g.most, min(updateMost, updateFactor*g.most))
	case g.updates > 0 || g.bulks > 0:
		return g.most
	default:
		return min(g.load, g.most)
	}
}
