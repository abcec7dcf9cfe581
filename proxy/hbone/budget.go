package hbone

import "sync/atomic"

// Budget caps the memory that receive windows beyond a stream's first 64 KB
// may come to use, for all streams that share it (those of one pod). A window
// is charged in full when it is granted, whether or not it fills. What fills
// the first windows of any number of streams is bounded by as much again: past
// that, streams whose applications do not read are reset.
type Budget struct {
	limit int64
	used  atomic.Int64
	kept  atomic.Int64 // buffers of bytes that applications have not taken
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

// keep reports whether a buffer of n bytes may be kept; then drop must follow.
func (b *Budget) keep(n int) bool {
	if b.kept.Add(int64(n)) <= 2*b.limit {
		return true
	}
	b.drop(n)
	return false
}

func (b *Budget) drop(n int) { b.kept.Add(-int64(n)) }

func (b *Budget) give(n int64) { b.used.Add(-n) }
