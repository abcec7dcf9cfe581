package hbone

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// Budget caps the memory that receive windows beyond a stream's first 64 KB
// may come to use, for all streams that share it (those of one pod). A window
// is charged in full when it is granted, whether or not it fills. What fills
// the first windows of any number of streams is bounded by as much again: past
// that, the stream whose application has taken nothing for the longest time is
// reset, so that those whose applications read are left alone.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu      sync.Mutex
	kept    int64     // buffers of bytes that applications have not taken
	holders list.List // the streams that have some, longest unread first
}

// holding is a stream's part of what its Budget keeps. Guarded by the budget's
// mu.
type holding struct {
	bytes   int64
	turn    *list.Element // in holders; nil without bytes
	evicted bool          // is about to be failed, and no part of kept any more
}

// NewBudget allows bytes in all.
func NewBudget(bytes int64) *Budget { return &Budget{limit: bytes} }

// Used is what is granted now, in bytes.
func (b *Budget) Used() int64 { return b.used.Load() }

func (b *Budget) take(n int64) bool {
	if b.used.Add(n) <= b.limit {
		return true
	}
	b.used.Add(-n)
	return false
}

func (b *Budget) give(n int64) { b.used.Add(-n) }

// keep notes a buffer of n bytes that s keeps, until drop. Where that is too
// much, it names the streams that the caller must fail, of which s may be one.
// What those keep counts no more, though it is there until they are failed:
// nobody else is to be evicted for the same room meanwhile.
func (b *Budget) keep(s *stream, n int) (evicted []*stream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := &s.inbox.holding
	if h.evicted {
		return nil
	}
	b.kept += int64(n)
	h.bytes += int64(n)
	if h.turn == nil {
		h.turn = b.holders.PushBack(s)
	}
	for b.kept > 2*b.limit {
		longest := b.holders.Remove(b.holders.Front()).(*stream)
		h := &longest.inbox.holding
		h.turn, h.evicted = nil, true
		b.kept -= h.bytes
		evicted = append(evicted, longest)
	}
	return evicted
}

// drop notes that n bytes of s are no longer kept: its application reads, or
// is gone.
func (b *Budget) drop(s *stream, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := &s.inbox.holding
	if h.evicted {
		return
	}
	b.kept -= int64(n)
	h.bytes -= int64(n)
	if h.bytes > 0 {
		b.holders.MoveToBack(h.turn)
		return
	}
	b.holders.Remove(h.turn)
	h.turn = nil
}
