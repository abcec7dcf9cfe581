package hbone

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
