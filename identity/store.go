package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Store holds the current material of every identity that somebody on this
// node needs, one subscription to the source for each.
type Store struct {
	source Source
	now    func() time.Time

	// entries is read without a lock and replaced whole under mu.
	entries atomic.Pointer[map[model.Identity]*entry]

	mu       sync.Mutex
	acquired []*entry      // not subscribed yet
	news     chan struct{} // closed and replaced at each change
	imported map[model.Identity]*Material
	until    time.Time // end of what was imported and not acquired

	wake chan struct{} // tells Run that acquired is not empty
}

type entry struct {
	id       model.Identity
	material atomic.Pointer[Material]

	// Guarded by Store.mu.
	holders     int
	unsubscribe context.CancelFunc // nil until Run has subscribed
	err         error              // the source's last failure since the last success
}

// Status is one identity's state, for people and metrics.
type Status struct {
	Identity  model.Identity
	NotBefore time.Time // zero: there is no certificate yet
	NotAfter  time.Time
	Err       error // the source's last failure; nil once it has succeeded again
}

// NewStore makes an empty store over the source; Run makes it work.
func NewStore(source Source, opts ...Option) *Store {
	s := &Store{
		source:   source,
		now:      optionsOf(opts).now,
		news:     make(chan struct{}),
		imported: map[model.Identity]*Material{},
		wake:     make(chan struct{}, 1),
	}
	s.entries.Store(&map[model.Identity]*entry{})
	return s
}

// Run subscribes to what is acquired until the context ends, then waits for
// the subscriptions to end and returns the context's error.
func (s *Store) Run(ctx context.Context) error {
	var subscriptions sync.WaitGroup
	defer subscriptions.Wait()
	for {
		for _, follow := range s.takeAcquired(ctx) {
			subscriptions.Go(follow)
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Acquire keeps the identity's material fresh until release is called, once
// per Acquire; further calls of the same release do nothing.
func (s *Store) Acquire(id model.Identity) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := (*s.entries.Load())[id]
	if e == nil {
		e = &entry{id: id}
		if m := s.takeImported(id); m != nil {
			e.material.Store(m)
		}
		s.replaceEntries(func(entries map[model.Identity]*entry) { entries[id] = e })
		s.acquired = append(s.acquired, e)
		select {
		case s.wake <- struct{}{}:
		default: // Run has been told and has not looked yet
		}
	}
	e.holders++
	return sync.OnceFunc(func() { s.release(e) })
}

func (s *Store) release(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.holders--; e.holders > 0 {
		return
	}
	s.replaceEntries(func(entries map[model.Identity]*entry) { delete(entries, e.id) })
	s.acquired = slices.DeleteFunc(s.acquired, func(a *entry) bool { return a == e })
	if e.unsubscribe != nil {
		e.unsubscribe()
	}
	s.announce() // whoever waits for it must learn that it will not come
}

func (s *Store) takeAcquired(ctx context.Context) []func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var follow []func()
	for _, e := range s.acquired {
		ctx, cancel := context.WithCancel(ctx)
		e.unsubscribe = cancel
		follow = append(follow, func() { s.follow(ctx, e) })
	}
	s.acquired = nil
	return follow
}

func (s *Store) follow(ctx context.Context, e *entry) {
	err := s.source.Subscribe(ctx, e.id,
		func(m *Material) { s.updated(e, m) },
		func(err error) { s.failed(e, err) })
	if ctx.Err() == nil {
		s.failed(e, fmt.Errorf("the source of certificates gave up: %w", err))
	}
}

func (s *Store) updated(e *entry, m *Material) {
	if got := m.Identity(); got != e.id {
		s.failed(e, fmt.Errorf("the source issued a certificate for %q", got))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.material.Store(m)
	e.err = nil
	s.announce()
}

func (s *Store) failed(e *entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.err = err
}

// Get returns the identity's current material. It waits for one that is valid
// until the context ends; the error then names the source's last failure. An
// identity that nobody has acquired is an error at once.
func (s *Store) Get(ctx context.Context, id model.Identity) (*Material, error) {
	for {
		if m, _ := s.valid(id); m != nil {
			return m, nil // the usual case takes no lock
		}
		changed := s.Changed()
		m, held := s.valid(id)
		switch {
		case m != nil:
			return m, nil
		case !held:
			return nil, fmt.Errorf("certificate for %s: no pod of this node has that identity", id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, s.unavailable(id, ctx.Err())
		}
	}
}

// valid never returns an expired material.
func (s *Store) valid(id model.Identity) (m *Material, held bool) {
	e := (*s.entries.Load())[id]
	if e == nil {
		return nil, false
	}
	if m = e.material.Load(); m == nil || !m.ValidAt(s.now()) {
		return nil, true
	}
	return m, true
}

func (s *Store) unavailable(id model.Identity, waiting error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cause := errors.New("the source has not answered yet")
	if e := (*s.entries.Load())[id]; e != nil && e.err != nil {
		cause = e.err
	}
	return fmt.Errorf("certificate for %s: none is valid (%w): %w", id, waiting, cause)
}

// Changed returns a channel that is closed when next any identity's material
// is new or gone. That a certificate ends is no such change.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.news
}

// All lists every acquired identity, sorted.
func (s *Store) All() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for _, e := range s.sorted() {
		status := Status{Identity: e.id, Err: e.err}
		if m := e.material.Load(); m != nil {
			status.NotBefore, status.NotAfter = m.Leaf.NotBefore, m.Leaf.NotAfter
		}
		all = append(all, status)
	}
	return all
}

// The functions below are called with mu held.

func (s *Store) sorted() []*entry {
	return slices.SortedFunc(maps.Values(*s.entries.Load()), func(a, b *entry) int {
		return strings.Compare(a.id.Principal(), b.id.Principal())
	})
}

func (s *Store) replaceEntries(change func(map[model.Identity]*entry)) {
	entries := maps.Clone(*s.entries.Load())
	change(entries)
	s.entries.Store(&entries)
}

func (s *Store) announce() {
	close(s.news)
	s.news = make(chan struct{})
}
