package relay

import (
	"errors"
	"testing"
	"time"
)

// What comes without a pause is bulk, unless somebody takes it slowly.
func TestPace(t *testing.T) {
	for name, tt := range map[string]struct {
		piece int
		each  time.Duration
		want  int // times that 2 MB are said to be bulk
	}{
		"as fast as it goes": {32 << 10, 100 * time.Microsecond, 8},
		"in large pieces":    {bulkBytes, time.Millisecond, 4}, // the first of each two begins
		"beside many others": {32 << 10, 10 * time.Millisecond, 8},
		"to a slow receiver": {32 << 10, 20 * time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			now, said := time.Duration(1), 0
			for range 2 << 20 / tt.piece {
				now += tt.each
				if p.bulk(tt.piece, func() time.Duration { return now }) {
					said++
				}
			}
			if said != tt.want {
				t.Errorf("said %d times, want %d", said, tt.want)
			}
		})
	}
}

// A pause ends what might have become bulk, and what passes through the kernel
// alone counts as well.
func TestWhatCountsAsBulk(t *testing.T) {
	near, peer := tcpPair(t)
	far, _ := tcpPair(t)
	p, err := newPair(near, far)
	if err != nil {
		t.Fatal(err)
	}
	f := flow{src: p.app, dst: p.peer, counts: new(Counts)}
	f.count = &f.counts.Sent
	sent := make([]byte, 40<<10)
	if _, err := peer.Write(sent); err != nil {
		t.Fatal(err)
	}
	buf, n, err := f.src.Read(Small, 0, LargeSize, true)
	if err != nil {
		t.Fatal(err)
	}
	buf.Free()
	for moved := n; moved < len(sent); moved = int(f.src.reader.pace.moved) {
		if err := f.splice(); err != nil {
			t.Fatal(err)
		}
	}
	if moved := int(f.src.reader.pace.moved); moved != len(sent) {
		t.Errorf("%d bytes count, want %d", moved, len(sent))
	}
	if _, _, err := f.src.Read(Small, 0, LargeSize, false); !errors.Is(err, ErrWouldBlock) {
		t.Fatal(err)
	}
	if f.src.reader.pace != (pace{}) {
		t.Errorf("after a pause still %+v", f.src.reader.pace)
	}
}
