package report

import (
	"fmt"
	"io"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"
)

// Difference is that of one metric on one path between two runs.
type Difference struct {
	Metric
	Path     string
	Old, New float64 // medians
	P        float64 // that chance alone makes such a difference (Mann-Whitney)
}

// significance is below which a difference is not taken for noise.
const significance = 0.05

// Real says whether the difference is more than noise.
func (d Difference) Real() bool { return d.P < significance && d.Old != d.New }

// Worse says whether it is real, and to the bad.
func (d Difference) Worse() bool { return d.Real() && d.HigherBetter == (d.New < d.Old) }

// Compare lists what both runs have measured. Runs on different machines tell
// nothing, and fewer than four rounds of each can show no difference at all.
func Compare(before, after *Report) []Difference {
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
	return all
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
