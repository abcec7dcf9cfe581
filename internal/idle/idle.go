// Package idle gives memory back to the system once a program has little to
// do.
//
// After a burst the runtime keeps what that has needed until the next garbage
// collection, which a program that allocates little does not have for minutes.
// What does not belong here: how much memory a program may take.
package idle

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/tacit-mesh/tacit/internal/processors"
)

const (
	every = 10 * time.Second
	// What was allocated since memory was last given back has to be worth
	// another collection.
	worth = 256 << 10
)

// ReturnMemory gives memory back after each burst, until the context ends. A
// program that allocates more than busy bytes in 10 s soon needs again what it
// would give back, and so keeps it.
func ReturnMemory(ctx context.Context, busy uint64) error { return returnMemory(ctx, busy, every) }

func returnMemory(ctx context.Context, busy uint64, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	p := program{busy: busy}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.hasCalmedDown(allocated()) {
			processors.Busy() // it goes through the whole heap
			debug.FreeOSMemory()
			p.returned = allocated()
		}
	}
}

// program is how much a program had allocated at certain times, in bytes.
type program struct {
	busy     uint64 // that is a burst, between two looks
	last     uint64 // at the last look
	returned uint64 // when memory was last given back
}

// hasCalmedDown looks again.
func (p *program) hasCalmedDown(now uint64) bool {
	since := now - p.last
	p.last = now
	return since < p.busy && now-p.returned >= worth
}

// allocated is how much has been since the program began, in bytes.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
