package flows

import "time"

// chunk is how many records are made at a time, and read at a time: a ring takes
// memory only as it fills for the first time, and the data path never waits for
// a whole one to be read.
const chunk = 256

// ring holds the last records of a class.
type ring struct {
	size    int
	chunks  [][]record
	written uint64 // records in all; the newest is at (written-1) % size
}

// next is the record that is written next, in the place of the oldest.
func (r *ring) next() *record {
	i := int(r.written % uint64(r.size))
	if i/chunk == len(r.chunks) {
		r.chunks = append(r.chunks, make([]record, min(chunk, r.size-i)))
	}
	r.written++
	return &r.chunks[i/chunk][i%chunk]
}

// last is the newest record, nil if there is none.
func (r *ring) last() *record {
	if r.written == 0 {
		return nil
	}
	i := int((r.written - 1) % uint64(r.size))
	return &r.chunks[i/chunk][i%chunk]
}

// late is by how much a connection may be told of after others that ended
// later.
const late = 5 * time.Second

// read looks at as many records before a number as out has room for, newest
// first, and copies those that fit. It returns how many these are, and where to
// go on: 0 at the end.
func (r *ring) read(out []record, before uint64, f *Filter, since time.Time) (n int, next uint64) {
	before = min(before, r.written)
	oldest := r.written - min(r.written, uint64(r.size))
	for range out {
		if before <= oldest {
			return n, 0
		}
		before--
		i := int(before % uint64(r.size))
		one := &r.chunks[i/chunk][i%chunk]
		// Records stand in the order of their ends, but for what was told late.
		if one.time.Before(since.Add(-late)) {
			return n, 0
		}
		if !one.time.Before(since) && f.takes(one) {
			out[n] = *one
			n++
		}
	}
	return n, before
}
