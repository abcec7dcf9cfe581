package flows

import "errors"

// Bounds on taps: a few people, none of whom the data path waits for.
const (
	maxTaps   = 8
	tapBuffer = 1024
)

// ErrTaps is that as many taps are open as there may be.
var ErrTaps = errors.New("as many taps of this proxy are open as there may be: close one")

// ErrOff is that there is no log.
var ErrOff = errors.New("this proxy keeps no flows: it runs with --flows 0")

// Tap gets flows as they happen. Whoever reads too slowly loses some, as does
// everybody where a burst ends that only a sample was kept of, and is told how many.
type Tap struct {
	log    *Log
	filter *Filter
	flows  chan Flow
	lost   Lost // since it was asked for; guarded by the log's mu
}

// Tap begins to show the flows that the filter takes; Close must follow.
func (l *Log) Tap(f *Filter) (*Tap, error) {
	if l == nil {
		return nil, ErrOff
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.taps) >= maxTaps {
		return nil, ErrTaps
	}
	for class := range l.kept { // what was not kept before a tap it has not lost
		l.leaveToLast(class, l.kept[class].rest())
	}
	t := &Tap{log: l, filter: f, flows: make(chan Flow, tapBuffer)}
	l.taps[t] = struct{}{}
	l.tapping.Store(int32(len(l.taps)))
	return t, nil
}

// HasTaps reports whether anybody watches.
func (l *Log) HasTaps() bool { return l.tapping.Load() > 0 }

// Takes reports whether anything is done with events of a kind: whoever makes
// them can spare itself the trouble.
func (l *Log) Takes(k Kind) bool {
	return l != nil && (k != Opened || l.HasTaps())
}

// Flows brings them, in the order in which they happened. It is never closed.
func (t *Tap) Flows() <-chan Flow { return t.flows }

// Lost is how many flows a tap did not get, and why.
type Lost struct {
	Unread  int // the reader was too slow for them
	Sampled int // they ended a burst that only a sample was kept of
}

// Lost returns how many flows were lost since it was asked before.
func (t *Tap) Lost() Lost {
	t.log.mu.Lock()
	defer t.log.mu.Unlock()
	lost := t.lost
	t.lost = Lost{}
	return lost
}

// Close ends the tap.
func (t *Tap) Close() {
	t.log.mu.Lock()
	defer t.log.mu.Unlock()
	delete(t.log.taps, t)
	t.log.tapping.Store(int32(len(t.log.taps)))
}

// offer is called with the log's mu held.
func (t *Tap) offer(r *record) {
	if len(t.flows) == cap(t.flows) { // nobody else sends
		t.lose(r, r.weight, &t.lost.Unread)
		return
	}
	if t.filter.takes(r) {
		t.flows <- r.flow()
	}
}

// lose is that the tap does not get so many that a record stands for, and counts
// them. It is called with the log's mu held.
func (t *Tap) lose(r *record, weight int, count *int) {
	if t.filter.takes(r) {
		*count += weight
	}
}
