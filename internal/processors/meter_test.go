package processors

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// What is ready and finds no processor is late, and what finds one is not.
func TestMeterSeesWhoWaits(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	var m meter
	m.look(time.Now())
	for begin := time.Now(); ; {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				for b := time.Now(); time.Since(b) < 2*lateAfter; { // busy
				}
			})
		}
		all.Wait()
		if n := m.look(time.Now()); n.late && n.used > 0 {
			return
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("nobody was late")
		}
	}
}
