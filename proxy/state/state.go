// Package state holds the proxy's current view of the mesh.
//
// There is one writer, the xDS client, and any number of readers, each of
// which takes one snapshot and uses it for a whole decision. What does not
// belong here: how snapshots are made (xds/model) and where updates come from.
package state

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/tacit-mesh/tacit/xds/model"
)

// State is the current snapshot and the news that it changed.
type State struct {
	current atomic.Pointer[model.Snapshot]

	applying sync.Mutex // serializes Apply; before mu

	mu      sync.Mutex // guards changed, and that it is of the current one
	changed chan struct{}
}

// New holds the empty snapshot, in which nothing is ready.
func New() *State {
	s := &State{changed: make(chan struct{})}
	s.current.Store(model.NewSnapshot())
	return s
}

// Snapshot is the current one.
func (s *State) Snapshot() *model.Snapshot { return s.current.Load() }

// Apply makes the update visible, whole.
func (s *State) Apply(u model.Update) {
	s.change(func(now *model.Snapshot) *model.Snapshot { return now.Apply(u) })
}

// change has nobody wait while the next snapshot is made: after a large update
// that takes tenths of a second.
func (s *State) change(apply func(*model.Snapshot) *model.Snapshot) {
	s.applying.Lock()
	defer s.applying.Unlock()
	next := apply(s.current.Load())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Store(next)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Watch returns the current snapshot and a channel that is closed when there
// is a newer one.
func (s *State) Watch() (*model.Snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.Load(), s.changed
}

// Wait returns the first snapshot that satisfies ok, or the newest one and
// the context's error.
func (s *State) Wait(ctx context.Context, ok func(*model.Snapshot) bool) (*model.Snapshot, error) {
	if snapshot := s.Snapshot(); ok(snapshot) { // the usual case takes no lock
		return snapshot, nil
	}
	for {
		snapshot, changed := s.Watch()
		if ok(snapshot) {
			return snapshot, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return snapshot, ctx.Err()
		}
	}
}
