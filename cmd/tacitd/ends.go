package main

import (
	"context"
	"time"
)

// clockStep bounds a wait for a moment of the wall clock: timers stand still
// while a machine sleeps, and clocks are set.
const clockStep = 10 * time.Second

// followTime ends what ends by itself, such as revocations, until the context
// ends.
func (m *mesh) followTime(ctx context.Context) error {
	for {
		timer := time.NewTimer(m.advance(time.Now().Round(0)))
		select {
		case <-timer.C:
		case <-m.ends:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// advance ends what is over, and returns when to look again at the latest. Of a
// clock that was set back, what it took for over begins again.
func (m *mesh) advance(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := m.build.NextEnd()
	switch {
	case !m.known:
		return clockStep
	case now.Before(m.now):
	case end.IsZero():
		return clockStep
	case now.Before(end):
		return min(end.Sub(now), clockStep)
	}
	m.now = now
	changes := m.build.Advance(now)
	m.note(m.errs)
	m.send(changes)
	return 0 // something else may be next
}
