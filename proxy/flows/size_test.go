package flows

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A full log takes what it is said to take, and what callers make it keep is
// bounded as well.
func TestMemoryOfAFullLog(t *testing.T) {
	long := strings.Repeat("x", 1<<10)
	for _, tt := range []struct {
		name string
		most int64 // bytes a flow
		edit func(e *Event, i int)
	}{
		{"connections among a few pods", 330, func(e *Event, i int) { e.Source.Workload = pod("shop", fmt.Sprint("web-", i%50)) }},
		{"requests that say as much as they can", 750, func(e *Event, i int) {
			e.Kind, e.Method, e.Host, e.Path, e.Err = Requested, long, long, long, errors.New(long)
		}},
		{"each connection from a pod of its own", 800, func(e *Event, i int) {
			w := pod("shop", fmt.Sprint("web-", i))
			e.Source.Workload, e.Source.Identity = w, w.Identity()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := inUse()
			l := New(DefaultSize*4/3, noon) // a quarter is for others
			for i := range DefaultSize {
				l.Add(event(noon.Add(time.Duration(i)*time.Second), func(e *Event) { e.ID = fmt.Sprintf("%032x", i) }, func(e *Event) { tt.edit(e, i) }))
			}
			got := (inUse() - before) / DefaultSize
			t.Logf("%d bytes a flow", got)
			if got > tt.most {
				t.Errorf("%d bytes a flow, want %d at most", got, tt.most)
			}
			runtime.KeepAlive(l)
		})
	}
}

// What is forgotten takes along what it had in common with nothing that is
// remembered.
func TestForgottenPartiesGo(t *testing.T) {
	const pods, most = 20_000, 20 // bytes a pod
	l := New(1, noon)
	before := inUse()
	for i := range pods {
		l.Add(event(noon.Add(time.Duration(i)*time.Second), func(e *Event) { e.Source.Workload = pod("shop", fmt.Sprint("gone-", i)) }))
	}
	deadline := time.Now().Add(time.Minute)
	for inUse()-before > pods*most { // the runtime lets go of them in a goroutine of its own
		if time.Now().After(deadline) {
			t.Fatalf("a log of one flow takes %d KB more after %d of other pods", (inUse()-before)>>10, pods)
		}
	}
	runtime.KeepAlive(l)
}

// inUse is how many bytes are, after what was garbage has been collected.
func inUse() int64 {
	for range 3 {
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
