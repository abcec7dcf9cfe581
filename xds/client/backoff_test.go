package client

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	within := func(got, most time.Duration) {
		t.Helper()
		if got <= most/2 || got > most {
			t.Errorf("waits %v, want up to %v and more than half of it", got, most)
		}
	}
	for range 2 {
		for most := 10 * time.Millisecond; most < 15*time.Second; most *= 2 {
			within(b.after(false), most)
		}
		within(b.after(false), 15*time.Second)
		within(b.after(false), 15*time.Second)
		if wait := b.after(true); wait != 0 {
			t.Errorf("waits %v after a useful connection", wait)
		}
	}
}
