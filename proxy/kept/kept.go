// Package kept keeps connections to what the proxy itself asks: few enough, and
// none is closed while it is in use. What one asks leaves room for others.
//
// What does not belong here: what is asked, and how it is reached.
package kept

import (
	"context"
	"errors"
	"io"
	"sync"
)

// ErrBusy says that as many connections as may be are all in use.
var ErrBusy = errors.New("as many connections as may be kept for what decisions ask are all in use, or as many as one pod may have")

// Set is some connections by their keys. Each is somebody's, and not shared with
// others. What was used the longest time ago makes room for what is new.
type Set[K comparable, C io.Closer] struct {
	most, mostEach int

	mu    sync.Mutex // guards what follows
	kept  map[K]*entry[C]
	of    map[string]int // how many of them are somebody's
	freed chan struct{}  // closed when there may be room
	uses  uint64         // so far
}

type entry[C io.Closer] struct {
	conn  C
	of    string
	users int
	used  uint64 // when it was used last, by Set.uses
}

// New keeps at most most connections, and at most mostEach of one and the same;
// of nobody in particular, who is "", as many as there may be at all.
func New[K comparable, C io.Closer](most, mostEach int) *Set[K, C] {
	return &Set[K, C]{most: most, mostEach: mostEach, kept: map[K]*entry[C]{}, of: map[string]int{}, freed: make(chan struct{})}
}

// Use returns somebody's connection of this key, which open makes where there is
// none; open must not wait. Until done is called it is in use, and only
// [Set.Forget] and [Set.Close] close it. If there is no room Use waits for it
// until the context ends, and then returns [ErrBusy].
func (s *Set[K, C]) Use(ctx context.Context, of string, key K, open func() (C, error)) (conn C, done func(), err error) {
	for {
		e, freed, err := s.find(of, key, open)
		switch {
		case err != nil:
			return conn, nil, err
		case e != nil:
			return e.conn, func() { s.done(e) }, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return conn, nil, ErrBusy
		}
	}
}

// find is what Use does at once: an entry that is in use now, or what is closed
// when there may be room.
func (s *Set[K, C]) find(of string, key K, open func() (C, error)) (*entry[C], <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.kept[key]
	if e == nil {
		if !s.room(of) {
			return nil, s.freed, nil
		}
		conn, err := open()
		if err != nil {
			return nil, nil, err
		}
		e = &entry[C]{conn: conn, of: of}
		s.kept[key] = e
		s.of[of]++
	}
	e.users++
	s.use(e)
	return e, nil, nil
}

func (s *Set[K, C]) done(e *entry[C]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.users--
	s.use(e)
	if e.users == 0 {
		s.tell()
	}
}

// use notes that an entry is in use now. Called with mu held.
func (s *Set[K, C]) use(e *entry[C]) {
	s.uses++
	e.used = s.uses
}

// tell wakes up who waits for room. Called with mu held.
func (s *Set[K, C]) tell() {
	close(s.freed)
	s.freed = make(chan struct{})
}

// room reports whether one more may be kept, after making room by what is not in
// use: somebody's own, if that one has too many. Called with mu held.
func (s *Set[K, C]) room(of string) bool {
	switch {
	case of != "" && s.of[of] >= s.mostEach:
		return s.dropOldest(func(e *entry[C]) bool { return e.of == of })
	case len(s.kept) >= s.most:
		return s.dropOldest(func(*entry[C]) bool { return true })
	}
	return true
}

// dropOldest closes the one of those that was used the longest time ago, and
// reports whether there was any that is not in use. It does not wait until it is
// closed. Called with mu held.
func (s *Set[K, C]) dropOldest(those func(*entry[C]) bool) bool {
	var key K
	var oldest *entry[C]
	for k, e := range s.kept {
		if e.users == 0 && those(e) && (oldest == nil || e.used < oldest.used) {
			key, oldest = k, e
		}
	}
	if oldest == nil {
		return false
	}
	s.drop(key, oldest)
	go oldest.close()
	return true
}

// drop forgets a connection, which is to be closed then. Called with mu held.
func (s *Set[K, C]) drop(key K, e *entry[C]) {
	delete(s.kept, key)
	if s.of[e.of]--; s.of[e.of] == 0 {
		delete(s.of, e.of)
	}
}

// close closes the connection. It may take seconds, as gRPC takes leave of its
// peer, so that mu must not be held.
func (e *entry[C]) close() { _ = e.conn.Close() } // whoever uses it still learns of it

// Forget closes what is somebody's, also what is in use.
func (s *Set[K, C]) Forget(of string) { s.close(func(e *entry[C]) bool { return e.of == of }) }

// Close closes all connections.
func (s *Set[K, C]) Close() { s.close(func(*entry[C]) bool { return true }) }

func (s *Set[K, C]) close(those func(*entry[C]) bool) {
	var closing sync.WaitGroup
	defer closing.Wait() // without mu
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.kept {
		if those(e) {
			s.drop(key, e)
			closing.Go(e.close)
		}
	}
	s.tell()
}

// Len is how many are kept.
func (s *Set[K, C]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept)
}
