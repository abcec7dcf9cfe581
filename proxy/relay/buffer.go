package relay

import "sync"

// Sizes of pooled buffers. The largest holds four TLS records.
const (
	Small = iota
	Medium
	Large
	classes
)

// LargeSize is the length of a Large buffer in bytes.
const LargeSize = 64 << 10

// The smaller ones leave room for what comes with 4 and 16 KB, which
// applications like to send at once, in a size that Go's allocator has.
var sizes = [classes]int{4864, 18432, LargeSize}

// Buffer is pooled memory, held only while bytes are on their way.
type Buffer struct {
	B     []byte
	class uint8
}

// The pools hold no state, only memory that the garbage collector may take.
var pools [classes]sync.Pool

// Get returns a buffer of a size class (Small, Medium or Large).
func Get(class int) *Buffer {
	if b, ok := pools[class].Get().(*Buffer); ok {
		return b
	}
	return &Buffer{B: make([]byte, sizes[class]), class: uint8(class)}
}

// Free gives the buffer back; nothing may use it afterwards.
func (b *Buffer) Free() { pools[b.class].Put(b) }

// Appetite chooses the next buffer's class from how full the last ones were:
// large for bulk, small for messages.
type Appetite struct{ class, calm uint8 }

// Class is the size to read into next.
func (a *Appetite) Class() int { return int(a.class) }

// Fed notes that a read got n bytes where room were possible.
func (a *Appetite) Fed(n, room int) {
	switch {
	case n == room && a.class < classes-1:
		a.class++
		a.calm = 0
	case n < room/8 && a.class > 0:
		// Not at once: the tail of a bulk transfer comes in odd sizes.
		if a.calm++; a.calm == 8 {
			a.class--
			a.calm = 0
		}
	default:
		a.calm = 0
	}
}
