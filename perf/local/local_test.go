package local

import (
	"context"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "load") { // in a pod
		cmd, _ := Command("perf")
		cli.Main(cmd)
		return
	}
	fetchEnvoy(context.Background(), os.Stderr)
	world.Enter(m.Run, "./cmd/tacitd", "./cmd/tacit-agent", "./cmd/tacit-proxy")
}

// Everything is measured, on every path that it is meant for: what the figures
// are depends on the machine.
func TestEverythingIsMeasured(t *testing.T) {
	r := measured(t, "connection|second|bulk", "", 50*time.Millisecond)
	for _, m := range suite.All() {
		for _, metric := range m.Metrics() {
			t.Run(metric.Load+", "+metric.Name, func(t *testing.T) {
				if slices.ContainsFunc(suite.Programs, func(p suite.Program) bool { return p.Name == m.Kind }) && !installed(m.Kind) {
					t.Skipf("%s is not installed", m.Kind)
				}
				checkRow(t, r, metric)
			})
		}
	}
}

// A peer that does not work is absent, with the reason, and figures are derived
// for it.
func TestPeerThatDoesNotWork(t *testing.T) {
	o := options("^round trips of 1 KB, 1 connection$", "^(direct|envoy|ztunnel)$", 50*time.Millisecond)
	r, err := Measure(t.Context(), Config{Programs: "none", Ztunnel: "/bin/false"}, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Absent: ztunnel: /bin/false carries no connection", "Absent: linkerd2-proxy: it does not run without"} {
		if !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.HasPrefix(n, want) }) {
			t.Errorf("no %q in %q", want, r.Notes)
		}
	}
	x := r.Row("round trips of 1 KB, 1 connection", "p50")
	envoy, ok1 := x.Median(suite.Envoy)
	derived, ok2 := x.Median("ztunnel, derived")
	if !ok1 || !ok2 || math.Abs(derived/envoy-1) > 1e-9 { // in the published run they are alike in this
		t.Errorf("envoy %v, ztunnel %v", envoy, derived)
	}
}

// What a round trip takes of reads and writes does not depend on the machine:
// one of each for each of the four ways through a proxy, and a read that finds
// nothing, which tells that it has to wait. That policies about requests are in
// force on the same nodes changes nothing for what they do not cover. A request
// takes one more, for its line in the log, and hardly any besides: the frames of
// an exchange of HTTP/2 that come together go on together.
func TestCallsOfRoundTrip(t *testing.T) {
	echo, get, exchange := "round trips of 1 KB, 1 connection", "HTTP/1.1 requests, 1 connection", "exchanges of HTTP/2, 1 connection"
	r := measured(t, "^("+echo+"|"+get+"|"+exchange+")$", "^tacit(, beside HTTP|, HTTP)?$", 2*time.Second)
	for _, c := range []struct {
		load, path string
		most       float64
	}{
		{echo, suite.Tacit, 3*4 + 0.5}, // some are for PINGs and the like
		{echo, suite.BesideHTTP, 3*4 + 0.5},
		{get, suite.TacitHTTP, 16},
		{exchange, suite.TacitHTTP, 16},
	} {
		x := r.Row(c.load, "proxies' reads and writes each")
		if x == nil {
			t.Fatal("not measured")
		}
		n, ok := x.Median(c.path)
		t.Logf("%s, %s: %.1f reads and writes", c.path, c.load, n)
		if !ok || n > c.most || n < 4 {
			t.Errorf("%s, %s: %.1f reads and writes, at most %v", c.path, c.load, n, c.most)
		}
	}
}

func options(what, paths string, time time.Duration) suite.Options {
	return suite.Options{Rounds: 1, Full: true, Time: time, Measurements: regexp.MustCompile(what), Paths: regexp.MustCompile(paths), Progress: func(string, ...any) {}}
}

func measured(t *testing.T, what, paths string, time time.Duration) *report.Report {
	t.Helper()
	r, err := Measure(t.Context(), Config{}, options(what, paths, time))
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
		if _, ok := x.Median(suite.Tacit); !ok {
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
