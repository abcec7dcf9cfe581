package report

import (
	_ "embed"
	"errors"
	"html/template"
	"os"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// bar is one path's bar in the chart of a row. Lengths are in percent of the
// chart's width.
type bar struct {
	Path, Text         string
	Class              Class
	Length, Low, Width float64 // Low and Width are the range of the samples
}

type chart struct {
	*Row
	Bars []bar
}

// WritePage writes the report as one page that needs nothing else, neither a
// network nor scripts.
func (r *Report) WritePage(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	view := struct {
		*Report
		Charts []chart
	}{Report: r}
	for _, x := range r.Rows {
		view.Charts = append(view.Charts, r.chart(x))
	}
	return errors.Join(page.Execute(f, view), f.Close())
}

func (r *Report) chart(x *Row) chart {
	c := chart{Row: x}
	longest := 0.0
	for _, p := range r.Paths {
		if len(x.Samples[p.Name]) > 0 {
			_, most := x.Range(p.Name)
			longest = max(longest, most)
		}
	}
	for _, p := range r.Paths {
		v, ok := x.Median(p.Name)
		if !ok || longest <= 0 {
			continue
		}
		least, most := x.Range(p.Name)
		c.Bars = append(c.Bars, bar{Path: p.Name, Class: p.Class, Text: number(v),
			Length: 100 * v / longest, Low: 100 * least / longest, Width: 100 * (most - least) / longest})
	}
	return c
}
