package hbone

import "time"

// allowance bounds frames that cost this end more than they cost the peer. It
// looks at the clock only when it seems to be used up.
type allowance struct {
	left, burst int
	perSecond   int
	since       time.Time
}

func newAllowance(burst, perSecond int) allowance {
	return allowance{left: burst, burst: burst, perSecond: perSecond, since: time.Now()}
}

// spend reports whether there was one left.
func (a *allowance) spend() bool {
	if a.left == 0 {
		now := time.Now()
		a.left = min(a.burst, int(now.Sub(a.since).Seconds()*float64(a.perSecond)))
		a.since = now
	}
	if a.left == 0 {
		return false
	}
	a.left--
	return true
}

// earn adds one for something useful that calls for such a frame.
func (a *allowance) earn() { a.left = min(a.left+1, a.burst) }

// resetLog remembers the streams that this end reset last: frames that were on
// their way are no fault of the peer, as long as they fit the window it had.
type resetLog struct {
	recent [64]struct {
		id   uint32
		left int64
	}
	next int
}

func (l *resetLog) add(id uint32, window int64) {
	l.recent[l.next].id, l.recent[l.next].left = id, window
	l.next = (l.next + 1) % len(l.recent)
}

// allows reports whether n more bytes of the stream may still have been on
// their way.
func (l *resetLog) allows(id uint32, n int64) bool {
	for i := range l.recent {
		if r := &l.recent[i]; r.id == id && r.left >= n {
			r.left -= n
			return true
		}
	}
	return false
}
