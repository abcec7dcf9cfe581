package suite

import (
	"fmt"
	"math"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
)

// goal is what a figure is to be: a multiple of another path's, at most or at
// least by what is better.
type goal struct {
	what         string
	load, figure string
	path, than   string  // "" is the best peer
	above        string  // both are counted from this path's; "" is from zero
	need, wish   float64 // 0 without
	fixed        bool    // need and wish are values, not multiples
}

func goals() []goal {
	one, sixteen := roundTrips(1, 1024).name, roundTrips(16, 1024).name
	all := []goal{
		{what: "round trip, 1 connection: p50", load: one, figure: "p50", path: Tacit, need: 0.85, wish: 0.65},
		{what: "round trips a second, 16 connections", load: sixteen, figure: rate, path: Tacit, need: 1, wish: 1.2},
		{what: "CPU of a round trip, 16 connections", load: sixteen, figure: cpuEach, path: Tacit, need: 1, wish: 0.8},
		{what: "CPU of a round trip at 1,000 a second", load: atRate, figure: cpuEach, path: Tacit, need: 1.2, wish: 0.9},
		{what: "p99 at 1,000 a second, above direct", load: atRate, figure: "p99", path: Tacit, above: Direct, need: 1, wish: 0.7},
		{what: "new connections a second", load: newConnections(16).name, figure: rate, path: Tacit, need: 1.15, wish: 1.5},
		{what: "memory of an idle proxy, MB", load: memory, figure: baseMemory.Name, path: Tacit, need: 25, wish: 18, fixed: true},
		{what: "one node: p50 of a round trip", load: one, figure: "p50", path: TacitNear, than: Tacit, need: 0.6},
	}
	for _, n := range []int{1, 16} {
		name := bulk(toServer, load.Up, n).name
		all = append(all,
			goal{what: name + ": bytes", load: name, figure: bytesEach, path: Tacit, need: 1, wish: 1.2},
			goal{what: name + ": CPU per GB", load: name, figure: cpuPerGB, path: Tacit, need: 1, wish: 0.85},
			goal{what: "one node: " + name, load: name, figure: bytesEach, path: TacitNear, than: Tacit, need: 3},
			goal{what: "one node: " + name, load: name, figure: bytesEach, path: TacitNear, than: DirectNear, wish: 0.6})
	}
	for _, m := range []Measurement{requests(1), requests(16), unary(1), unary(16)} {
		for _, figure := range []string{"p50", "p99", cpuEach, resident} {
			all = append(all, goal{what: m.name + ": " + figure, load: m.name, figure: figure, path: TacitHTTP, than: EnvoyHTTP, need: 1})
		}
	}
	for _, n := range []int{1000, 10000} {
		all = append(all, goal{what: fmt.Sprintf("memory of each of %d idle connections, KB", n), load: memory, figure: idleMemory(n).Name, path: Tacit, need: 9, wish: 5, fixed: true})
	}
	return all
}

// Judge adds to the report what the figures are to be and whether they are.
func Judge(r *report.Report) {
	for _, g := range goals() {
		if x := r.Row(g.load, g.figure); x != nil {
			if v, ok := g.verdict(r, x); ok {
				r.Verdicts = append(r.Verdicts, v)
			}
		}
	}
	for _, name := range []string{roundTrips(1, 1024).name, roundTrips(16, 1024).name} {
		judgeAlike(r, alike{what: "skipped port, " + name, load: name, figure: "p50", path: Skipped, than: Direct})
		for _, figure := range []string{"p50", "p99", cpuEach, calls} {
			judgeAlike(r, alike{what: "connections beside those of HTTP, " + name, load: name, figure: figure, path: BesideHTTP, than: Tacit})
		}
	}
	for _, n := range neighbours {
		judgeFairness(r, n)
	}
}

// verdict compares medians.
func (g goal) verdict(r *report.Report, x *report.Row) (v report.Verdict, ok bool) {
	ours, ok := x.Median(g.path)
	if !ok {
		return v, false
	}
	v.What = g.what
	if g.fixed {
		v.Text = fmt.Sprintf("%.1f", ours)
		g.judge(&v, ours, x.HigherBetter)
		return v, true
	}
	than := g.than
	if than == "" {
		than = r.BestPeer(x)
	}
	theirs, ok := x.Median(than)
	base, hasBase := x.Median(g.above)
	if !ok || g.above != "" && !hasBase {
		return v, false
	}
	ours, theirs = ours-base, theirs-base
	if theirs <= 0 { // what is added cannot be told from noise
		return v, false
	}
	v.Text = fmt.Sprintf("%.2f × %s", ours/theirs, than)
	g.judge(&v, ours/theirs, x.HigherBetter)
	return v, true
}

func (g goal) judge(v *report.Verdict, value float64, higherBetter bool) {
	word, reached := "at most", func(bound float64) bool { return value <= bound }
	if higherBetter {
		word, reached = "at least", func(bound float64) bool { return value >= bound }
	}
	v.Met = g.need == 0 || reached(g.need)
	if g.need != 0 {
		v.Text += fmt.Sprintf("; %s %v", word, g.need)
	}
	if g.wish != 0 {
		v.Text += fmt.Sprintf("; goal %v", g.wish)
		if reached(g.wish) {
			v.Text += ", reached"
		} else {
			v.Text += ", not reached"
		}
	}
}

// alike is a figure that is to differ between two paths by noise alone.
type alike struct{ what, load, figure, path, than string }

func judgeAlike(r *report.Report, a alike) {
	x := r.Row(a.load, a.figure)
	if x == nil {
		return
	}
	ours, ok1 := x.Median(a.path)
	theirs, ok2 := x.Median(a.than)
	if ok1 && ok2 {
		r.Verdicts = append(r.Verdicts, report.Verdict{What: a.what, Met: x.Alike(a.path, a.than) || ours < theirs,
			Text: fmt.Sprintf("%s %.2f × %s; to be within noise of it", a.figure, ours/theirs, a.than)})
	}
}

// What another pod's load may add to the p99 of a pod through the same proxies,
// over what the same load adds that is sent directly.
const (
	unfairShare  = 0.20
	unfairMicros = 100
)

func judgeFairness(r *report.Report, n neighbour) {
	with, without := r.Row(n.name(ThroughProxies), "p99"), r.Row(n.name(SentDirectly), "p99")
	if with == nil || without == nil {
		return
	}
	p99, ok1 := with.Median(Tacit)
	base, ok2 := without.Median(Tacit)
	if !ok1 || !ok2 {
		return
	}
	most := base*(1+unfairShare) + unfairMicros
	r.Verdicts = append(r.Verdicts, report.Verdict{What: "fairness: p99 beside " + n.what + " through the same proxies", Met: p99 <= most,
		Text: fmt.Sprintf("%.0f µs; at most %.0f, as it is %.0f beside the same sent directly", p99, math.Floor(most), base)})
}
