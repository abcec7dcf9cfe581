package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"
)

// Difference is that of one metric on one path between two runs.
type Difference struct {
	Metric
	Path     string
	Old, New float64 // medians
	P        float64 // that chance alone makes such a difference (Mann-Whitney)
	real     bool
}

const (
	// significance is how likely it may be that chance alone makes any of all
	// differences seem real.
	significance = 0.05
	// notable is the least change that is called one.
	notable = 0.03
)

// Real says whether the difference is more than noise.
func (d Difference) Real() bool { return d.real && math.Abs(d.New-d.Old) >= notable*d.Old }

// Worse says whether it is real, and to the bad.
func (d Difference) Worse() bool { return d.Real() && d.HigherBetter == (d.New < d.Old) }

// fewest are the rounds of either run with which a difference of one of some
// hundreds of figures can be told from noise: the least p of Mann-Whitney's
// test is then 2/(18 over 9).
const fewest = 9

// Compare lists what both runs have measured. Runs on different machines tell
// nothing; an error says that there are too few rounds to tell anything.
func Compare(before, after *Report) ([]Difference, error) {
	if n := min(before.Rounds, after.Rounds); n < fewest {
		return nil, fmt.Errorf("%d rounds are too few to tell a difference from noise: measure with -rounds %d at least", n, fewest)
	}
	var all []Difference
	for _, x := range before.Rows {
		for _, y := range after.Rows {
			if x.Metric != y.Metric {
				continue
			}
			for _, p := range before.Paths {
				a, ok1 := x.Median(p.Name)
				b, ok2 := y.Median(p.Name)
				if !ok1 || !ok2 {
					continue
				}
				c := benchmath.AssumeNothing.Compare(sample(x, p.Name), sample(y, p.Name))
				all = append(all, Difference{Metric: x.Metric, Path: p.Name, Old: a, New: b, P: c.P})
			}
		}
	}
	judge(all)
	return all, nil
}

// judge tells real differences from noise by Holm's method: among many figures
// some differ by chance.
func judge(all []Difference) {
	order := make([]*Difference, len(all))
	for i := range all {
		order[i] = &all[i]
	}
	slices.SortFunc(order, func(a, b *Difference) int { return cmp.Compare(a.P, b.P) })
	for i, d := range order {
		if d.P > significance/float64(len(order)-i) {
			return
		}
		d.real = true
	}
}

// Alike says whether two paths differ by no more than noise.
func (x *Row) Alike(path, other string) bool {
	a, ok1 := x.Median(path)
	b, ok2 := x.Median(other)
	if !ok1 || !ok2 {
		return false
	}
	return math.Abs(a-b) < notable*b || benchmath.AssumeNothing.Compare(sample(x, path), sample(x, other)).P > significance
}

func sample(x *Row, path string) *benchmath.Sample {
	return benchmath.NewSample(x.Samples[path], &benchmath.DefaultThresholds)
}

// PrintDifferences shows them as a table, the noise marked as such.
func PrintDifferences(out io.Writer, all []Difference) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "\t\t\tpath\told\tnew\tchange\tp\t\t")
	for _, d := range all {
		verdict := "noise"
		switch {
		case d.Worse():
			verdict = "WORSE"
		case d.Real():
			verdict = "better"
		}
		change := "·"
		if d.Old > 0 {
			change = fmt.Sprintf("%+.1f%%", 100*(d.New/d.Old-1))
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.3f\t%s\t\n", d.Load, d.Name, d.Unit, d.Path, number(d.Old), number(d.New), change, d.P, verdict)
	}
	_ = w.Flush() // a terminal that is gone needs no table
}
