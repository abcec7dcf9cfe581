// Package report keeps what was measured and shows it: as a table, as JSON
// and as a page with charts; and says whether two measurements differ.
//
// What does not belong here: what is measured and how.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// Report holds every sample of a run.
type Report struct {
	Title  string   `json:"title"`
	Notes  []string `json:"notes"` // what machine and conditions these are
	Paths  []Path   `json:"paths"`
	Rows   []*Row   `json:"metrics"`
	Rounds int      `json:"rounds"`
	// Verdicts say of some figures whether they are what they are to be.
	Verdicts []Verdict `json:"verdicts,omitempty"`
}

// Verdict is about one figure.
type Verdict struct {
	What string `json:"what"`
	Text string `json:"text"` // what it is, and is to be
	Met  bool   `json:"met"`
}

// Word is the verdict in one word.
func (v Verdict) Word() string {
	if v.Met {
		return "met"
	}
	return "MISSED"
}

// Row is the figure of a load, nil if it was not measured.
func (r *Report) Row(load, name string) *Row {
	for _, x := range r.Rows {
		if x.Load == load && x.Name == name {
			return x
		}
	}
	return nil
}

// Path is one way from a client to a server.
type Path struct {
	Name  string `json:"name"`
	Class Class  `json:"class"`
}

// Class is what a path is to the comparison.
type Class string

// The classes of paths.
const (
	Plain Class = "plain" // nothing in between
	Tacit Class = "tacit"
	Peer  Class = "peer" // what Tacit is compared with
	// Derived is a peer that is absent, by what others have found about it.
	Derived Class = "derived"
)

// Metric is what a row is about: a figure of a load.
type Metric struct {
	Load         string `json:"load"`
	Name         string `json:"name"`
	Unit         string `json:"unit"`
	HigherBetter bool   `json:"higherIsBetter"`
}

// Row is one metric's samples by path.
type Row struct {
	Metric
	Samples map[string][]float64 `json:"samples"`
}

// Note adds a sample.
func (r *Report) Note(m Metric, path string, value float64) {
	i := slices.IndexFunc(r.Rows, func(x *Row) bool { return x.Metric == m })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &Row{Metric: m, Samples: map[string][]float64{}})
	}
	r.Rows[i].Samples[path] = append(r.Rows[i].Samples[path], value)
}

// Median is the middle sample, or the mean of the two in the middle; false
// without samples.
func (x *Row) Median(path string) (float64, bool) {
	s := slices.Sorted(slices.Values(x.Samples[path]))
	if len(s) == 0 {
		return 0, false
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2, true
}

// Range is the least and the greatest sample.
func (x *Row) Range(path string) (least, most float64) {
	s := x.Samples[path]
	return slices.Min(s), slices.Max(s)
}

// Ratio says how many times better a path is than another: above 1 is better.
// False where it was not measured.
func (x *Row) Ratio(path, than string) (float64, bool) {
	a, ok1 := x.Median(path)
	b, ok2 := x.Median(than)
	if !ok1 || !ok2 || a <= 0 || b <= 0 {
		return 0, false
	}
	if x.HigherBetter {
		a, b = b, a
	}
	return b / a, true
}

// BestPeer is the peer with the best median, "" if none was measured.
func (r *Report) BestPeer(x *Row) string {
	best := ""
	for _, p := range r.Paths {
		if _, ok := x.Median(p.Name); !ok || p.Class != Peer && p.Class != Derived {
			continue
		}
		if ratio, ok := x.Ratio(p.Name, best); best == "" || ok && ratio > 1 {
			best = p.Name
		}
	}
	return best
}

// Write writes the report as JSON.
func (r *Report) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Read reads what Write has written.
func Read(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s is not what perf -o writes: %w", path, err)
	}
	return r, nil
}
