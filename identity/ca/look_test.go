package ca

import (
	"context"
	"errors"
	"testing"
	"time"
)

// silent is a store that does not answer.
type silent struct{ *memory }

func (s silent) Load(ctx context.Context) (*State, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A store that does not answer holds nobody up for longer than until the next
// look.
func TestSilentStoreIsLookedAtAgain(t *testing.T) {
	m, c := newMemory(t)
	a := replica(t, m, c)
	a.store, a.config.Interval = silent{m}, time.Millisecond
	if err := a.look(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the look ends with %v", err)
	}
}
