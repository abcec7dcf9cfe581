package main

import (
	"context"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) {
	runCommand(context.Background())
	world.Enter(m.Run, "./cmd/tacitd", "./cmd/tacit-agent", "./cmd/tacit-proxy")
}

// Everything is measured, on every path that it is meant for: what the figures
// are depends on the machine.
func TestEverythingIsMeasured(t *testing.T) {
	r := measured(t, "connection|second|bulk", "", 50*time.Millisecond)
	for _, m := range measurements {
		for _, f := range m.found {
			t.Run(f.Load+", "+f.Name, func(t *testing.T) { checkRow(t, r, f.Metric) })
		}
	}
}

// What a round trip takes of reads and writes does not depend on the machine:
// one of each for each of the four ways through a proxy, and a read that finds
// nothing, which tells that it has to wait.
func TestCallsOfRoundTrip(t *testing.T) {
	const most = 3*4 + 0.5 // some are for PINGs and the like
	r := measured(t, "^round trips of 1 KB, 1 connection$", "^tacit$", 2*time.Second)
	i := slices.IndexFunc(r.Rows, func(x *report.Row) bool { return x.Name == calls })
	if i < 0 {
		t.Fatal("not measured")
	}
	if n, ok := r.Rows[i].Median(pathTacit); !ok || n > most || n < 4 {
		t.Errorf("%.1f %s, at most %v", n, calls, most)
	}
}

func measured(t *testing.T, what, paths string, time time.Duration) *report.Report {
	t.Helper()
	c := config{manifests: "manifests", rounds: 1, time: time, measurements: regexp.MustCompile(what), paths: regexp.MustCompile(paths)}
	r, err := measureWorld(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func checkRow(t *testing.T, r *report.Report, m report.Metric) {
	for _, x := range r.Rows {
		if x.Metric != m {
			continue
		}
		if _, ok := x.Median(pathTacit); !ok {
			t.Errorf("not of Tacit: %v", x.Samples)
		}
		for path, samples := range x.Samples {
			if len(samples) != 1 || samples[0] < 0 {
				t.Errorf("%s: %v", path, samples)
			}
		}
		return
	}
	t.Error("not measured")
}

func TestProcesses(t *testing.T) {
	own := []int{os.Getpid()}
	before, err := usageOf(own)
	if err != nil {
		t.Fatal(err)
	}
	after := before
	for began := time.Now(); after.cpu <= before.cpu && time.Since(began) < time.Minute; { // to ask is work, too
		if after, err = usageOf(own); err != nil {
			t.Fatal(err)
		}
	}
	if after.cpu <= before.cpu || after.calls <= before.calls {
		t.Errorf("used %+v, then %+v", before, after)
	}
	if bytes, err := residentMemory(own); err != nil || bytes < 1<<20 || bytes > 1<<33 {
		t.Errorf("resident: %d bytes (%v)", bytes, err)
	}
	if _, err := usageOf([]int{0}); err == nil {
		t.Error("a process that is not there has used something")
	}
}
