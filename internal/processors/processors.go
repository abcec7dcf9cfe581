// Package processors has Go's scheduler use as many processors (threads that run
// goroutines at a time) as the program's load needs.
//
// By itself Go has one for each CPU. While there is less to do than that, those
// without work look for some, and each goroutine that becomes ready wakes one
// of them, in vain: for a relay of small messages that is a quarter of all CPU
// where there are two (perf/README.md). With a single one, however, a goroutine
// that never waits is interrupted after 10 ms, and sockets are looked at no
// sooner. So whoever is such a goroutine says so.
//
// What does not belong here: how work is shared out among goroutines.
package processors

import (
	"context"
	"os"
	"runtime"
	"time"
)

// every is how long a round takes.
const every = 100 * time.Millisecond

// There is one scheduler in a program, so this is one for all.
var scheduler = governor{count: runtime.GOMAXPROCS, byDefault: byDefault}

func byDefault() int {
	runtime.SetDefaultGOMAXPROCS()
	return runtime.GOMAXPROCS(0)
}

// Follow has there be as many processors as are needed, until the context ends.
// Where the environment says how many (GOMAXPROCS), there are that many, and
// more during updates alone.
func Follow(ctx context.Context) error {
	_, told := os.LookupEnv("GOMAXPROCS")
	scheduler.begin(runtime.NumCPU(), told)
	defer scheduler.end()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var m meter
	m.look(time.Now())
	for {
		select {
		case now := <-tick.C:
			scheduler.round(m.look(now))
		case <-scheduler.busySaid:
			scheduler.busy()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Busy says that the calling goroutine goes on for a millisecond or more without
// waiting: others are to find a processor beside it. It costs next to nothing
// and does not wait until there are more, which a collection of garbage may hold
// up for as long as it takes.
func Busy() {
	if !scheduler.following.Load() || scheduler.busyNow.Swap(true) {
		return
	}
	select {
	case scheduler.busySaid <- struct{}{}:
	default:
	}
	runtime.Gosched()
}

// Update says that a large update is under way. It keeps a processor busy for
// seconds, and the collection of its garbage another one; where there are no
// more, everybody waits until Go's scheduler takes one away again, tens of
// milliseconds. The kernel's gives way at once, so it is to choose.
func Update() { scheduler.update() }
