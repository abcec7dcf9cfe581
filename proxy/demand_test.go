package proxy

import (
	"fmt"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/state"
)

// No pod can take the names that others need, nor those of decisions.
func TestNamesAreShared(t *testing.T) {
	held := 0
	p := New(Config{State: state.New(), Demand: func(string) (func(), bool) {
		held++
		return func() { held-- }, true
	}})
	greedy, other := holder{share: newShare(1).names}, holder{share: newShare(1).names}
	again := holder{share: greedy.share}
	defer again.release(p)
	defer other.release(p)
	names := 0
	for ; names <= maxNames && greedy.hold(p, fmt.Sprint("/", names)); names++ {
	}
	if names != maxNamesOfPod || held != names {
		t.Errorf("a pod has %d names and holds %d, want %d", names, held, maxNamesOfPod)
	}
	if !again.hold(p, "/0") {
		t.Error("a name that the pod has counts again")
	}
	if !other.hold(p, "/other") {
		t.Error("there is none left for another pod")
	}
	if of := (holder{}); !of.hold(p, "/provider") {
		t.Error("there is none left for decisions")
	}
	greedy.release(p)
	if n := p.names.Taken(); n != 2 { // again's and the other's
		t.Errorf("%d are taken when those are given back", n)
	}
	if !greedy.hold(p, "/new") {
		t.Error("what was given back cannot be had")
	}
	greedy.release(p)
}
