package idle

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCalmsDown(t *testing.T) {
	const mega = 1 << 20
	for _, tt := range []struct {
		name  string
		looks []uint64 // MB allocated since the one before
		want  []bool
	}{
		{"a burst", []uint64{20, 0, 0}, []bool{false, true, false}},
		{"a burst of several looks", []uint64{5, 5, 5, 0}, []bool{false, false, false, true}},
		{"one after the other", []uint64{5, 0, 5, 0}, []bool{false, true, false, true}},
		{"always busy", []uint64{5, 5, 5, 5}, []bool{false, false, false, false}},
		{"nothing to do", []uint64{0, 0}, []bool{false, false}},
	} {
		p := program{busy: 1 << 20}
		now := uint64(0)
		for i, more := range tt.looks {
			now += more * mega
			got := p.hasCalmedDown(now)
			if got != tt.want[i] {
				t.Errorf("%s: look %d says %v", tt.name, i, got)
			}
			if got {
				p.returned = now
			}
		}
	}
}

// A trickle is worth a collection once it has come to something.
func TestTrickle(t *testing.T) {
	p := program{busy: 1 << 20}
	returned := 0
	for now := uint64(worth / 8); now <= 3*worth; now += worth / 8 {
		if p.hasCalmedDown(now) {
			p.returned = now
			returned++
		}
	}
	if returned != 3 {
		t.Errorf("memory was given back %d times, want 3", returned)
	}
}

func TestMemoryIsReturned(t *testing.T) {
	const burst = 64 << 20
	var stats runtime.MemStats
	garbage := make([]byte, burst)
	for i := range garbage { // the system gives what is written to
		garbage[i] = 1
	}
	runtime.KeepAlive(garbage)
	runtime.ReadMemStats(&stats)
	before := stats.HeapSys - stats.HeapReleased
	if before < burst {
		t.Fatalf("the burst has taken %d bytes", before)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error)
	go func() { ended <- returnMemory(ctx, 1<<20, time.Millisecond) }()
	for after := before; after > before-burst/2; after = stats.HeapSys - stats.HeapReleased {
		if ctx.Err() != nil {
			t.Fatalf("of %d bytes %d are still held", before, after)
		}
		runtime.Gosched()
		runtime.ReadMemStats(&stats)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended by %v", err)
	}
}
