package proxy

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
)

// A caller whose questions are not answered waits for its own, and leaves slots
// to all others, however many it has waiting.
func TestTurnsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newShare(1).asking
		ctx, cancel := context.WithCancel(t.Context())
		greedy, got := arrived4, 0
		done := make(chan bool)
		for range 2 * maxAsking {
			go func() { done <- turns.take(ctx, greedy) }()
		}
		synctest.Wait()
		for more := true; more; {
			select {
			case <-done:
				got++
				synctest.Wait()
			default:
				more = false
			}
		}
		if got == 0 || got > maxAsking/2 {
			t.Errorf("one caller has %d of %d slots", got, maxAsking)
		}

		// What is given back goes to who waits.
		turns.give(greedy)
		if !<-done {
			t.Error("who waits gets nothing of what was given back")
		}

		atOnce, late := context.WithCancel(t.Context())
		late()
		others := []netip.Addr{greedy.Next(), greedy.Next().Next(), greedy.Next().Next().Next()}
		for _, other := range others {
			if !turns.take(atOnce, other) {
				t.Errorf("%v is kept out", other)
			}
		}

		cancel()
		for range 2*maxAsking - got - 1 {
			if <-done {
				t.Fatal("somebody has a slot that nobody gave back")
			}
		}
		for range got {
			turns.give(greedy)
		}
		for _, other := range others {
			turns.give(other)
		}
		if turns.room.Taken() != 0 || len(turns.waiting) != 0 {
			t.Errorf("%d are taken and %d wait after all", turns.room.Taken(), len(turns.waiting))
		}
	})
}

// Who waits longest of one caller is next, and whoever leaves takes nothing.
func TestTurnsAreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(2) // one for one caller
		source := arrived4
		if !turns.take(t.Context(), source) {
			t.Fatal("the first gets none")
		}
		served := make(chan string, 3)
		leaving, leave := context.WithCancel(t.Context())
		wait := func(ctx context.Context, name string) {
			go func() {
				if turns.take(ctx, source) {
					served <- name
				}
			}()
			synctest.Wait()
		}
		wait(leaving, "who leaves")
		wait(t.Context(), "second")
		wait(t.Context(), "third")
		leave()
		synctest.Wait()
		for _, want := range []string{"second", "third"} {
			turns.give(source)
			if name := <-served; name != want {
				t.Errorf("%s is next, want %s", name, want)
			}
		}
		turns.give(source)
		if turns.room.Taken() != 0 || len(turns.waiting) != 0 {
			t.Errorf("%d are taken and %d wait after all", turns.room.Taken(), len(turns.waiting))
		}
	})
}
