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
)

const (
	every = 10 * time.Second
	// A program that allocates more than busy between two looks collects its
	// garbage by itself, and soon needs again what it would give back.
	busy = 1 << 20
	// What was allocated since memory was last given back has to be worth
	// another collection.
	worth = 1 << 20
)

// ReturnMemory gives memory back after each burst, until the context ends.
func ReturnMemory(ctx context.Context) error { return returnMemory(ctx, every) }

func returnMemory(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	p := program{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.hasCalmedDown(allocated()) {
			debug.FreeOSMemory()
			p.returned = allocated()
		}
	}
}

// program is how much a program had allocated at certain times, in bytes.
type program struct {
	last     uint64 // at the last look
	returned uint64 // when memory was last given back
}

// hasCalmedDown looks again.
func (p *program) hasCalmedDown(now uint64) bool {
	since := now - p.last
	p.last = now
	return since < busy && now-p.returned >= worth
}

// allocated is how much has been since the program began, in bytes.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
