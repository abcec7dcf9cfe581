package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// report holds every sample. Its JSON form is what -o writes.
type report struct {
	Kernel  string  `json:"kernel"`
	CPUs    int     `json:"cpus"`
	HAProxy string  `json:"haproxy"`
	Rounds  int     `json:"rounds"`
	Seconds float64 `json:"secondsPerMeasurement"`
	Split   bool    `json:"cpusSplit"` // between the nodes
	Rows    []*row  `json:"metrics"`

	paths []string
}

// row is one metric's samples by path.
type row struct {
	metric
	Samples map[string][]float64 `json:"samples"`
}

func newReport(c config, paths []*path) *report {
	r := &report{CPUs: runtime.NumCPU(), Rounds: c.rounds, Seconds: c.time.Seconds(), Split: c.split}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		r.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if out, err := exec.Command("haproxy", "-v").Output(); err == nil {
		r.HAProxy, _, _ = strings.Cut(string(out), "\n")
	}
	for _, p := range paths {
		r.paths = append(r.paths, p.name)
	}
	return r
}

func (r *report) note(m metric, path string, value float64) {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.metric == m })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{metric: m, Samples: map[string][]float64{}})
	}
	r.Rows[i].Samples[path] = append(r.Rows[i].Samples[path], value)
}

// median is the middle sample, or the mean of the two in the middle.
func (x *row) median(path string) (float64, bool) {
	s := slices.Sorted(slices.Values(x.Samples[path]))
	if len(s) == 0 {
		return 0, false
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2, true
}

// ratio says how many times better a path is than another; above 1 is better.
func (x *row) ratio(path, than string) string {
	a, ok1 := x.median(path)
	b, ok2 := x.median(than)
	if !ok1 || !ok2 || a <= 0 || b <= 0 {
		return "-"
	}
	if x.HigherBetter {
		a, b = b, a
	}
	return fmt.Sprintf("%.2f ×", b/a)
}

func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\n%s\ttacit vs haproxy\ttacit vs direct\tskipped vs direct\t\n", "metric\tunit\t"+strings.Join(r.paths, "\t"))
	for _, x := range r.Rows {
		cells := []string{x.Name, x.Unit}
		for _, p := range r.paths {
			text := "-"
			if v, ok := x.median(p); ok {
				text = number(v)
			}
			cells = append(cells, text)
		}
		cells = append(cells, x.ratio(pathTacit, pathHAProxy), x.ratio(pathTacit, pathDirect), x.ratio(pathSkipped, pathDirect))
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
	}
	_ = w.Flush() // a terminal that is gone needs no table
	cpus := "all for both nodes"
	if r.Split {
		cpus = "half of them for each node"
	}
	_, _ = fmt.Fprintf(out, "\nMedians of %d rounds on %d CPUs, %s, Linux %s, %s.\nA ratio above 1 means better. Only compare within one run.\n",
		r.Rounds, r.CPUs, cpus, r.Kernel, r.HAProxy)
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

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// stderrOf is what a command that failed had to say.
func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return ": " + string(exit.Stderr)
	}
	return ""
}
