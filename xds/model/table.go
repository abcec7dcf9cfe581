package model

import (
	"hash/maphash"
	"iter"

	"github.com/benbjohnson/immutable"
)

// table is a persistent map: whoever changes a copy leaves the original as it
// was. For a change of most of it, it can be opened: then it is changed in place,
// without leaving a copy of each node on the way behind for every entry.
type table[K comparable, V any] struct {
	entries *immutable.Map[K, V]
	opened  *immutable.MapBuilder[K, V] // has them in the place of entries; nil if closed
}

type hasher[K comparable] struct{ seed maphash.Seed }

func (h hasher[K]) Hash(k K) uint32   { return uint32(maphash.Comparable(h.seed, k)) }
func (h hasher[K]) Equal(a, b K) bool { return a == b }

func newHasher[K comparable]() hasher[K] { return hasher[K]{maphash.MakeSeed()} }

func newTable[K comparable, V any]() table[K, V] {
	return table[K, V]{entries: immutable.NewMap[K, V](newHasher[K]())}
}

// open copies all entries once. Nobody else may have the table until it is closed.
func (t *table[K, V]) open() {
	t.opened = immutable.NewMapBuilder[K, V](newHasher[K]())
	for k, v := range t.all() {
		t.opened.Set(k, v)
	}
	t.entries = nil
}

func (t *table[K, V]) close() { t.entries, t.opened = t.opened.Map(), nil }

// find returns the entry of a key, and whether there is one.
func (t *table[K, V]) find(k K) (v V, ok bool) {
	if t.opened != nil {
		return t.opened.Get(k)
	}
	return t.entries.Get(k)
}

// get is find for entries that are never zero.
func (t *table[K, V]) get(k K) V {
	v, _ := t.find(k)
	return v
}

func (t *table[K, V]) set(k K, v V) {
	if t.opened != nil {
		t.opened.Set(k, v)
		return
	}
	t.entries = t.entries.Set(k, v)
}

func (t *table[K, V]) remove(k K) {
	if t.opened != nil {
		t.opened.Delete(k)
		return
	}
	t.entries = t.entries.Delete(k)
}

func (t *table[K, V]) len() int { return t.entries.Len() }

// all yields the entries of a closed table, in one order.
func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for it := t.entries.Iterator(); !it.Done(); {
			if k, v, _ := it.Next(); !yield(k, v) {
				return
			}
		}
	}
}
