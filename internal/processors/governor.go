package processors

import (
	"sync"
	"sync/atomic"
)

const (
	// A round that uses more than this part of the processors there are asks for
	// twice as many, and calmRounds that use less than the other for half.
	mostUsed, leastUsed = 0.6, 0.3
	calmRounds          = 10
	// How long busy goroutines and updates count, from the last word of them on.
	busyRounds, updateRounds = 10, 100
	// During an update there are so many times as many as by default, up to a
	// number. Of four the collection takes one; of two or three it would take a
	// part of each, which goes before what waits for that processor, for up to
	// 10 ms.
	updateFactor, updateMost = 2, 4
	// After so many rounds without the default it is looked whether that is
	// another one, as by a control group's limit. To look, it is set.
	defaultRounds = 300
)

// governor decides how many processors there are.
type governor struct {
	count     func(n int) int // runtime.GOMAXPROCS
	byDefault func() int      // has as many as Go would by itself, and returns how many

	following atomic.Bool
	busyNow   atomic.Bool   // said in this round
	busySaid  chan struct{} // set before following is

	mu      sync.Mutex
	cpus    int  // of the machine, that the program may run on
	told    bool // by the operator how many
	most    int  // but for updates: Go's default, or as told
	now     int
	load    int // what the load needs
	calm    int // rounds since it needed that
	busies  int // rounds left
	updates int // rounds left
	others  int // rounds since there were as many as by default
}

func (g *governor) begin(cpus int, told bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cpus, g.told = cpus, told
	g.most = g.count(0)
	g.now, g.load = g.most, g.most
	g.busySaid = make(chan struct{}, 1)
	g.busyNow.Store(false)
	g.following.Store(true)
}

// end leaves as many as there are.
func (g *governor) end() { g.following.Store(false) }

// round hears what was needed since the last one.
func (g *governor) round(n need) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.learn()
	g.updates = max(0, g.updates-1)
	g.busies = max(0, g.busies-1)
	if g.busyNow.Swap(false) {
		g.busies = busyRounds
	}
	g.follow(n)
	g.set()
}

// learn follows the default, which the runtime does by itself while nothing else
// is set. Called with mu held.
func (g *governor) learn() {
	switch {
	case g.told || g.updates > 0:
	case g.now == g.most:
		g.others = 0
		g.most = g.count(0)
		g.now = g.most
	default:
		if g.others++; g.others >= defaultRounds {
			g.others = 0
			g.setDefault()
		}
	}
}

func (g *governor) follow(n need) {
	switch {
	case g.told:
	case n.late || n.used > mostUsed*float64(g.now):
		g.load, g.calm = max(g.load, min(2*g.now, g.most)), 0
	case n.used >= leastUsed*float64(g.load):
		g.calm = 0
	default:
		if g.calm++; g.calm == calmRounds {
			g.load, g.calm = max(1, g.load/2), 0
		}
	}
}

func (g *governor) busy() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busies = busyRounds
	g.set()
}

func (g *governor) update() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.following.Load() {
		return
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
	if !g.told && want > min(g.now, g.most-1) { // more, or the default itself
		g.setDefault()
		want = g.wanted()
	}
	if want != g.now {
		g.count(want)
		g.now = want
	}
}

func (g *governor) setDefault() {
	g.most = g.byDefault()
	g.now = g.most
}

// wanted is how many there are to be. Where a limit or the operator has them be
// fewer than CPUs, an update gets no more: they would run at once and use up
// the limit the sooner, and then all connections wait.
func (g *governor) wanted() int {
	switch {
	case g.updates > 0 && g.most >= g.cpus:
		return max(g.most, min(updateMost, updateFactor*g.most))
	case g.updates > 0 || g.busies > 0:
		return g.most
	default:
		return min(g.load, g.most)
	}
}
