package portions

import "testing"

// No taker gets more than its portion, and where they are to leave something,
// whoever comes after any number of them gets some.
func TestTakersLeaveSomething(t *testing.T) {
	for _, c := range []struct {
		name        string
		mostOfTaker int
		halve       bool
		want        []int // of takers that take one after the other what they can
	}{
		{"alone", 100, false, []int{100, 0, 0}},
		{"a portion each", 40, false, []int{40, 40, 20, 0}},
		{"half of what is left", 100, true, []int{50, 25, 12, 6, 3, 2, 1, 0}},
		{"both", 30, true, []int{30, 30, 20, 10, 5, 2, 1, 1, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := New[int](100, c.mostOfTaker, c.halve)
			taken := make([]int, len(c.want))
			for taker := range taken {
				for p.Take(taker, 1) {
					taken[taker]++
				}
			}
			for taker, want := range c.want {
				if taken[taker] != want {
					t.Fatalf("took %v, want %v", taken, c.want)
				}
			}
			for taker, n := range taken {
				p.Give(taker, n)
			}
			if p.Taken() != 0 || len(p.of) != 0 {
				t.Errorf("%d is taken after all was given back: %v", p.Taken(), p.of)
			}
		})
	}
}

// Nothing is there for everybody, and leaves nothing behind.
func TestTakeNothing(t *testing.T) {
	p := New[int](1, 1, true)
	if !p.Take(1, 0) || !p.Take(2, 0) || len(p.of) != 0 {
		t.Errorf("remembered: %v", p.of)
	}
}
