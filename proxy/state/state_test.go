package state_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWaitSeesAnUpdateThatComesLater(t *testing.T) {
	s := state.New()
	waiting, got := make(chan struct{}), make(chan *model.Snapshot)
	go func() {
		var once sync.Once
		snapshot, err := s.Wait(t.Context(), func(n *model.Snapshot) bool {
			once.Do(func() { close(waiting) })
			return n.PoliciesReady() && n.AddressesReady()
		})
		if err != nil {
			t.Error(err)
		}
		got <- snapshot
	}()
	<-waiting
	s.Apply(model.Update{PoliciesComplete: true})
	s.Apply(model.Update{AddressesComplete: true})
	if g := (<-got).Generation(); g != 2 {
		t.Errorf("generation %d, want 2", g)
	}
}

func TestWaitEndsWithItsContextAndGivesTheNewestSnapshot(t *testing.T) {
	s := state.New()
	s.Apply(model.Update{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	snapshot, err := s.Wait(ctx, func(*model.Snapshot) bool { return false })
	if !errors.Is(err, context.Canceled) || snapshot.Generation() != 1 {
		t.Errorf("got generation %d, %v; want 1, context canceled", snapshot.Generation(), err)
	}
}

func TestUpdatesAreWholeAndInOrder(t *testing.T) {
	s := state.New()
	const updates = 200
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for last := uint64(0); last < updates; {
				snapshot, changed := s.Watch()
				if snapshot.Generation() < last {
					t.Errorf("generation went from %d back to %d", last, snapshot.Generation())
				}
				last = snapshot.Generation()
				a, b := snapshot.Workload("a"), snapshot.Workload("b")
				if (a == nil) != (b == nil) || a != nil && a.Node != b.Node {
					t.Errorf("generation %d: half of an update is visible: %v, %v", last, a, b)
				}
				if last < updates {
					<-changed
				}
			}
		})
	}
	for i := range updates {
		node := string(rune('A' + i%26))
		s.Apply(model.Update{Workloads: []*model.Workload{{UID: "a", Node: node}, {UID: "b", Node: node}}})
	}
	readers.Wait()
}
