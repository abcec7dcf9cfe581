package caclient

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

func TestGateLetsTheUrgentGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1)
		if err := g.enter(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		var order []string
		impatient, giveUp := context.WithCancel(t.Context())
		arrive := func(ctx context.Context, name string, urgent bool) {
			go func() {
				if err := g.enter(ctx, urgent); err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				order = append(order, name)
				g.leave()
			}()
			synctest.Wait()
		}
		arrive(t.Context(), "renewal 1", false)
		arrive(t.Context(), "renewal 2", false)
		arrive(impatient, "gone", true)
		arrive(t.Context(), "new pod 1", true)
		arrive(t.Context(), "new pod 2", true)
		giveUp()
		synctest.Wait()
		if len(order) != 0 {
			t.Fatalf("%v went through a full gate", order)
		}
		g.leave()
		synctest.Wait()
		if want := []string{"new pod 1", "new pod 2", "renewal 1", "renewal 2"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		if g.free != 1 {
			t.Errorf("%d free, want 1", g.free)
		}
	})
}

func TestGateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(3)
		inside := 0
		ctx, cancel := context.WithCancel(t.Context())
		for range 10 {
			go func() {
				if g.enter(ctx, false) == nil {
					inside++
				}
			}()
			synctest.Wait()
		}
		if inside != 3 {
			t.Errorf("%d inside, want 3", inside)
		}
		cancel()
		synctest.Wait()
	})
}
