package main

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// There are more processors for as long as a burst lasts, unless more would run
// at once, and then as many as before, whether that was said or found.
func TestBurst(t *testing.T) {
	found := runtime.GOMAXPROCS(0)
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
	for name, tt := range map[string]struct {
		told           string
		cpus           int
		before, during int
		after          int
	}{
		"one CPU":                {"", 1, 1, 2, found},
		"one CPU, as told":       {"1", 1, 1, 2, 1},
		"two CPUs":               {"", 2, 2, 4, found},
		"three CPUs":             {"", 3, 3, 4, found},
		"many CPUs, as told":     {"7", 7, 7, 7, 7},
		"limit of one of many":   {"", 8, 2, 2, 2}, // Go takes no less than two for it
		"limit of one of two":    {"", 2, 2, 4, found},
		"fewer than CPUs, told":  {"1", 2, 1, 1, 1},
		"more than CPUs, told":   {"3", 2, 3, 4, 3},
		"limit of three of many": {"", 8, 3, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.told != "" {
				t.Setenv("GOMAXPROCS", tt.told)
			}
			runtime.GOMAXPROCS(tt.before)
			synctest.Test(t, func(t *testing.T) {
				p := processors{cpus: tt.cpus}
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
