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
	"syscall"
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
	tick := time.NewTicker(every)
	defer tick.Stop()
	used, at := cpuTime(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-scheduler.bulkBegun:
			scheduler.bulk()
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		usedNow, now := cpuTime(), time.Now()
		scheduler.round(float64(usedNow-used) / float64(now.Sub(at)))
		used, at = usedNow, now
	}
}

// cpuTime is what the program has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for other arguments alone
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Bulk says that the calling goroutine has not waited for a while and goes on:
// others are to find a processor beside it. It costs next to nothing, and does
// not wait until there are more, which a collection of garbage may hold up.
func Bulk() {
	if !scheduler.following.Load() || scheduler.bulkSaid.Swap(true) {
		return
	}
	select {
	case scheduler.bulkBegun <- struct{}{}:
	default:
	}
	runtime.Gosched()
}

// Update says that a large update is under way. It keeps a processor busy for
// seconds, and the collection of its garbage another one; where there are no
// more, everybody waits until Go's scheduler takes one away again, tens of
// milliseconds. The kernel's gives way at once, so it is to choose.
func Update() { scheduler.update() }
