package main

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// There are more processors for as long as a burst lasts, and then as many as
// before, whether that was said or found.
func TestBurst(t *testing.T) {
	found := runtime.GOMAXPROCS(0)
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
	for name, tt := range map[string]struct {
		told           string
		before, during int
		after          int
	}{
		"few":           {"", 1, burstProcessors, found},
		"few, as told":  {"1", 1, burstProcessors, 1},
		"many, as told": {"7", 7, 7, 7},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.told != "" {
				t.Setenv("GOMAXPROCS", tt.told)
			}
			runtime.GOMAXPROCS(tt.before)
			synctest.Test(t, func(t *testing.T) {
				var p processors
				for range 2 {
					p.burst()
					if n := runtime.GOMAXPROCS(0); n != tt.during {
						t.Errorf("%d during a burst, want %d", n, tt.during)
					}
					<-time.After(burstLasts / 2)
				}
				if n := runtime.GOMAXPROCS(0); n != tt.during {
					t.Errorf("%d before it is over, want %d", n, tt.during)
				}
				<-time.After(burstLasts)
				synctest.Wait()
				if n := runtime.GOMAXPROCS(0); n != tt.after {
					t.Errorf("%d after it, want %d", n, tt.after)
				}
			})
		})
	}
}
