package identity

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Store holds the current material of every subject that somebody on this
// node needs, one subscription to the source for each.
type Store struct {
	source    Source
	now       func() time.Time
	selectors func(Pod) string
	report    func(Status)
	pushed    bool

	// entries is read without a lock and replaced whole under mu.
	entries atomic.Pointer[map[Subject]*entry]

	mu       sync.Mutex
	acquired []*entry      // not subscribed yet
	news     chan struct{} // closed and replaced at each change
	kept     map[Subject]kept

	wake chan struct{} // tells Run to look at acquired and kept again
}

type entry struct {
	subject  Subject
	material atomic.Pointer[Material]

	// Guarded by Store.mu.
	holders     int
	unsubscribe context.CancelFunc // nil until Run has subscribed
	received    time.Time          // when the material came
	err         error              // the source's last failure since the last success
	failures    uint64
}

// Status is one certificate's state, for people and metrics.
type Status struct {
	Subject
	Leaf     *x509.Certificate // nil: there is none yet
	Received time.Time         // of the leaf
	Chain    [][]byte          // what peers are shown, leaf first, DER
	// Authorities are the roots of its own trust domain.
	Authorities []*x509.Certificate
	Roots       time.Time // when the last root ends by which peers are judged
	// Err is the source's last failure; nil once it has succeeded again.
	Err      error
	Failures uint64 // of the source, for this subject, since it was acquired

	due time.Time // zero: at half of the life
}

// NotAfter is when the certificate ends, zero if there is none.
func (s *Status) NotAfter() time.Time {
	if s.Leaf == nil {
		return time.Time{}
	}
	return s.Leaf.NotAfter
}

// Renewal is when a newer certificate is due: at half of the life that it had
// left when it came, unless its source renews when it wants. It is zero if there
// is none.
func (s *Status) Renewal() time.Time {
	if s.Leaf == nil || !s.due.IsZero() {
		return s.due
	}
	from := s.Received
	if from.IsZero() { // taken over from an earlier process
		from = s.Leaf.NotBefore
	}
	return from.Add(s.Leaf.NotAfter.Sub(from) / 2)
}

// NewStore makes an empty store over the source; Run makes it work.
func NewStore(source Source, opts ...Option) *Store {
	o := optionsOf(opts)
	s := &Store{
		source:    source,
		now:       o.now,
		selectors: o.selectors,
		report:    o.failed,
		pushed:    o.pushed,
		news:      make(chan struct{}),
		kept:      map[Subject]kept{},
		wake:      make(chan struct{}, 1),
	}
	s.entries.Store(&map[Subject]*entry{})
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
		forget, stop := s.forgetting()
		select {
		case <-s.wake:
		case <-forget:
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
		stop()
	}
}

// Subject is whom a pod's certificate is for.
func (s *Store) Subject(pod Pod) Subject {
	return Subject{Identity: pod.Identity, Selectors: s.selectors(pod)}
}

// Acquire keeps the subject's material fresh until release is called, once
// per Acquire; further calls of the same release do nothing.
func (s *Store) Acquire(subject Subject) (release func()) {
	return s.acquire(subject, Subject{})
}

// acquire begins with the material of another subject of the same identity, if
// there is that.
func (s *Store) acquire(subject, before Subject) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := (*s.entries.Load())[subject]
	if e == nil {
		e = &entry{subject: subject}
		if m := s.takeKept(subject); m != nil {
			e.material.Store(m)
		} else if old := (*s.entries.Load())[before]; old != nil && before.Identity == subject.Identity {
			e.material.Store(old.material.Load())
			e.received = old.received
		}
		s.replaceEntries(func(entries map[Subject]*entry) { entries[subject] = e })
		s.acquired = append(s.acquired, e)
		s.wakeRun()
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
	s.replaceEntries(func(entries map[Subject]*entry) { delete(entries, e.subject) })
	s.acquired = slices.DeleteFunc(s.acquired, func(a *entry) bool { return a == e })
	if e.unsubscribe != nil {
		e.unsubscribe()
	}
	s.keep(e)
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
	err := s.source.Subscribe(ctx, e.subject,
		func(m *Material) { s.updated(e, m) },
		func(err error) { s.failed(e, err) })
	if ctx.Err() == nil {
		s.failed(e, fmt.Errorf("the source of certificates gave up: %w", err))
	}
}

func (s *Store) updated(e *entry, m *Material) {
	if got := m.Identity(); got != e.subject.Identity {
		s.failed(e, fmt.Errorf("the source issued a certificate for %q", got))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.material.Store(m)
	e.received, e.err = s.now(), nil
	s.announce()
}

func (s *Store) failed(e *entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.err = err
	e.failures++
	s.report(s.status(e))
}

// Get returns the subject's current material. It waits for one that is valid
// until the context ends; the error then names the source's last failure. A
// subject that nobody has acquired is an error at once.
func (s *Store) Get(ctx context.Context, subject Subject) (*Material, error) {
	for {
		if m, _ := s.valid(subject); m != nil {
			return m, nil // the usual case takes no lock
		}
		changed := s.Changed()
		m, held := s.valid(subject)
		switch {
		case m != nil:
			return m, nil
		case !held:
			return nil, fmt.Errorf("certificate for %s: no pod of this node has that identity", subject.Identity)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, s.unavailable(subject, ctx.Err())
		}
	}
}

// valid never returns an expired material.
func (s *Store) valid(subject Subject) (m *Material, held bool) {
	e := (*s.entries.Load())[subject]
	if e == nil {
		return nil, false
	}
	if m = e.material.Load(); m == nil || !m.ValidAt(s.now()) {
		return nil, true
	}
	return m, true
}

// Lack is why the subject has no valid certificate at this moment, nil if it
// has one.
func (s *Store) Lack(subject Subject) error {
	if m, _ := s.valid(subject); m != nil {
		return nil
	}
	return fmt.Errorf("certificate for %s: none is valid: %w", subject.Identity, s.cause(subject))
}

func (s *Store) unavailable(subject Subject, waiting error) error {
	return fmt.Errorf("certificate for %s: none is valid (%w): %w", subject.Identity, waiting, s.cause(subject))
}

func (s *Store) cause(subject Subject) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := (*s.entries.Load())[subject]; e != nil && e.err != nil {
		return e.err
	}
	return errors.New("the source has not answered yet")
}

// Changed returns a channel that is closed when next any identity's material
// is new or gone. That a certificate ends is no such change.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.news
}

// All lists every acquired subject, sorted.
func (s *Store) All() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for _, e := range s.sorted() {
		all = append(all, s.status(e))
	}
	return all
}

// The functions below are called with mu held.

func (s *Store) status(e *entry) Status {
	status := Status{Subject: e.subject, Received: e.received, Err: e.err, Failures: e.failures}
	if m := e.material.Load(); m != nil {
		status.Leaf, status.Chain, status.Authorities = m.Leaf, m.Certificate.Certificate, m.Authorities
		for _, root := range m.Authorities {
			if root.NotAfter.After(status.Roots) {
				status.Roots = root.NotAfter
			}
		}
		if s.pushed {
			status.due = m.RenewalDue()
		}
	}
	return status
}

func (s *Store) sorted() []*entry {
	return slices.SortedFunc(maps.Values(*s.entries.Load()), func(a, b *entry) int {
		return cmp.Or(strings.Compare(a.subject.Identity.Principal(), b.subject.Identity.Principal()),
			strings.Compare(a.subject.Selectors, b.subject.Selectors))
	})
}

func (s *Store) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default: // Run has been told and has not looked yet
	}
}

func (s *Store) replaceEntries(change func(map[Subject]*entry)) {
	entries := maps.Clone(*s.entries.Load())
	change(entries)
	s.entries.Store(&entries)
}

func (s *Store) announce() {
	close(s.news)
	s.news = make(chan struct{})
}
