package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Comparison is a column of ratios. Without Than it is with the best peer of
// each row.
type Comparison struct{ Path, Than string }

func (c Comparison) title() string {
	if c.Than == "" {
		return c.Path + " vs best peer"
	}
	return c.Path + " vs " + c.Than
}

// Print shows medians and then ratios, each as a table.
func (r *Report) Print(out io.Writer, comparisons []Comparison) {
	comparisons = slices.DeleteFunc(slices.Clone(comparisons), func(c Comparison) bool {
		return !r.has(c.Path) || c.Than != "" && !r.has(c.Than)
	})
	names := make([]string, len(r.Paths))
	for i, p := range r.Paths {
		names[i] = p.Name
	}
	r.table(out, names, func(x *Row) (cells []string) {
		for _, p := range names {
			cells = append(cells, x.cell(p))
		}
		return cells
	})
	_, _ = fmt.Fprintf(out, "\nMedians of %d rounds and half the distance from the least to the most.\n", r.Rounds)
	for _, note := range r.Notes {
		_, _ = fmt.Fprintln(out, note)
	}
	titles := make([]string, len(comparisons))
	for i, c := range comparisons {
		titles[i] = c.title()
	}
	_, _ = fmt.Fprint(out, "\nHow many times better, by the medians; below 1 is worse.\n\n")
	r.table(out, titles, func(x *Row) (cells []string) {
		for _, c := range comparisons {
			cells = append(cells, r.ratio(x, c))
		}
		return cells
	})
	if len(r.Verdicts) == 0 {
		return
	}
	_, _ = fmt.Fprint(out, "\nWhat the figures are to be, by the medians.\n\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, v := range r.Verdicts {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", v.Word(), v.What, v.Text)
	}
	_ = w.Flush() // a terminal that is gone needs no table
}

// table has a line for each figure that has cells, under one for its load.
func (r *Report) table(out io.Writer, columns []string, cells func(*Row) []string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "\t%s\n", strings.Join(columns, "\t"))
	load := ""
	for _, x := range r.Rows {
		row := cells(x)
		if !slices.ContainsFunc(row, func(c string) bool { return c != none }) {
			continue
		}
		if x.Load != load {
			load = x.Load
			_, _ = fmt.Fprintf(w, "%s%s\n", load, strings.Repeat("\t", len(columns)))
		}
		_, _ = fmt.Fprintf(w, "  %s, %s\t%s\n", x.Name, x.Unit, strings.Join(row, "\t"))
	}
	_ = w.Flush() // a terminal that is gone needs no table
}

// none is the cell of what was not measured.
const none = "·"

func (r *Report) has(path string) bool {
	return slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Name == path })
}

func (r *Report) ratio(x *Row, c Comparison) string {
	than, who := c.Than, ""
	if than == "" {
		than = r.BestPeer(x)
		who = " (" + than + ")"
	}
	ratio, ok := x.Ratio(c.Path, than)
	if !ok {
		return none
	}
	return fmt.Sprintf("%.2f%s", ratio, who)
}

func (x *Row) cell(path string) string {
	v, ok := x.Median(path)
	if !ok {
		return none
	}
	text := number(v)
	if least, most := x.Range(path); len(x.Samples[path]) > 1 && v > 0 {
		text += fmt.Sprintf(" ±%.0f%%", 50*(most-least)/v)
	}
	return text
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
