package hbone

import "sync/atomic"

// Budget caps the memory that receive windows beyond a stream's first 64 KB
// may come to use, for all streams that share it (those of one pod). A window
// is charged in full when it is granted, whether or not it fills.
type Budget struct {
	limit int64
	used  atomic.Int64
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
