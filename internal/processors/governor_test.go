package processors

import "testing"

// goRuntime plays Go's.
type goRuntime struct{ n, standard int }

func (r *goRuntime) count(n int) int {
	before := r.n
	if n > 0 {
		r.n = n
	}
	return before
}

func (r *goRuntime) byDefault() int {
	r.n = r.standard
	return r.n
}

// governed has begun where Go has so many by default.
func governed(cpus, standard int, told bool) (*governor, *goRuntime) {
	r := &goRuntime{n: standard, standard: standard}
	g := &governor{count: r.count, byDefault: r.byDefault}
	g.begin(cpus, told)
	return g, r
}

func rounds(g *governor, n int, used float64) {
	for range n {
		g.round(need{used: used})
	}
}

// There are as many as the load needs: more at once, fewer once it has needed
// less for a while.
func TestLoad(t *testing.T) {
	g, r := governed(8, 8, false)
	for i, step := range []struct {
		rounds int
		used   float64
		want   int
	}{
		{1, 5, 8},
		{calmRounds - 1, 0.1, 8},
		{1, 0.1, 4},
		{calmRounds, 0.1, 2},
		{calmRounds - 1, 0.5, 2},
		{1, 0.6, 2}, // and it counts anew
		{calmRounds - 1, 0.5, 2},
		{1, 0.5, 1},
		{3 * calmRounds, 0, 1},
		{1, 0.6, 1},
		{1, 0.7, 2},
		{1, 1.9, 4},
		{1, 4, 8},
		{5, 8, 8},
		{calmRounds, 2.3, 4},
	} {
		rounds(g, step.rounds, step.used)
		if r.n != step.want {
			t.Fatalf("step %d: %d, want %d", i, r.n, step.want)
		}
	}
}

// Beside a busy goroutine there are all at once, and for a while after its last
// word.
func TestBusy(t *testing.T) {
	g, r := governed(4, 4, false)
	rounds(g, 2*calmRounds, 0)
	g.busy()
	g.busyNow.Store(true)
	for range busyRounds {
		if r.n != 4 {
			t.Fatalf("%d beside a busy goroutine, want 4", r.n)
		}
		g.round(need{used: 0.1})
	}
	if r.n != 4 {
		t.Errorf("%d before it is over, want 4", r.n)
	}
	g.round(need{used: 0.1})
	if r.n != 1 {
		t.Errorf("%d after it, want 1", r.n)
	}
}

// During an update there are more, unless they would run at once, where a
// limit or the operator allows fewer than CPUs; then as many as before.
func TestUpdate(t *testing.T) {
	for name, tt := range map[string]struct {
		cpus, standard int
		told           bool
		before, during int
	}{
		"one CPU":                {1, 1, false, 1, 2},
		"one CPU, as told":       {1, 1, true, 1, 2},
		"two CPUs":               {2, 2, false, 1, 4},
		"three CPUs":             {3, 3, false, 1, 4},
		"many CPUs":              {7, 7, false, 1, 7},
		"many CPUs, as told":     {7, 7, true, 7, 7},
		"limit of two of many":   {8, 2, false, 1, 2},
		"limit of three of many": {8, 3, false, 1, 3},
		"fewer than CPUs, told":  {2, 1, true, 1, 1},
		"more than CPUs, told":   {2, 3, true, 3, 4},
	} {
		t.Run(name, func(t *testing.T) {
			g, r := governed(tt.cpus, tt.standard, tt.told)
			rounds(g, 4*calmRounds, 0)
			if r.n != tt.before {
				t.Fatalf("%d before an update, want %d", r.n, tt.before)
			}
			for range 2 {
				g.update()
				rounds(g, updateRounds-1, 0.1)
				if r.n != tt.during {
					t.Errorf("%d during an update, want %d", r.n, tt.during)
				}
			}
			g.round(need{used: 0.1})
			if r.n != tt.before {
				t.Errorf("%d after it, want %d", r.n, tt.before)
			}
		})
	}
}

// Where the kernel gives the program less than it needs, it cannot use much: then
// those count that wait.
func TestLate(t *testing.T) {
	g, r := governed(4, 4, false)
	rounds(g, 2*calmRounds, 0)
	for _, want := range []int{2, 4, 4} {
		if g.round(need{used: 0.3, late: true}); r.n != want {
			t.Errorf("%d where goroutines wait, want %d", r.n, want)
		}
	}
}

// A control group's limit may change while the program runs. Go follows it,
// unless another number was set.
func TestChangedLimit(t *testing.T) {
	const limit = 2
	for name, tt := range map[string]struct {
		used  float64 // before
		after func(*governor)
	}{
		"as Go has by itself":     {8, func(g *governor) { rounds(g, calmRounds, 1.9) }},
		"fewer, and load":         {0, func(g *governor) { rounds(g, 3, 1) }},
		"fewer, and who is busy":  {0, (*governor).busy},
		"fewer, for a while":      {1.5, func(g *governor) { rounds(g, defaultRounds, 1.5) }},
		"fewer, and then updates": {1.5, (*governor).update},
	} {
		t.Run(name, func(t *testing.T) {
			g, r := governed(8, 8, false)
			rounds(g, 4*calmRounds, tt.used)
			if r.n == r.standard {
				r.n = limit // as Go does
			}
			r.standard = limit
			if tt.after(g); r.n != limit {
				t.Errorf("%d under a limit of %d", r.n, limit)
			}
			if r.n == r.standard {
				r.n = 8
			}
			r.standard = 8
			if rounds(g, defaultRounds+1, 8); r.n != 8 {
				t.Errorf("%d without a limit, want 8", r.n)
			}
			if rounds(g, updateRounds+4*calmRounds, 0); r.n != 1 {
				t.Errorf("%d with nothing to do, want 1", r.n)
			}
		})
	}
}

// What looks for another default does not set it during an update.
func TestUpdateIsNotDisturbed(t *testing.T) {
	g, r := governed(2, 2, false)
	set := g.byDefault
	rounds(g, 2*calmRounds, 0)
	g.update()
	g.byDefault = func() int {
		t.Errorf("the default is set in an update")
		return set()
	}
	for range 2 * defaultRounds {
		if g.update(); r.n != 4 {
			t.Fatalf("%d during an update, want 4", r.n)
		}
		g.round(need{})
	}
}
