package suite

import (
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
)

// sample is a report in which every figure of a measurement is the same.
func sample(values map[string]map[string]float64) *report.Report {
	r := &report.Report{Paths: []report.Path{{Name: Direct, Class: report.Plain}, {Name: Tacit, Class: report.Tacit}, {Name: TacitNear, Class: report.Tacit}, {Name: Envoy, Class: report.Peer}}}
	for _, m := range All() {
		for _, metric := range m.Metrics() {
			for path, v := range values[metric.Load+", "+metric.Name] {
				r.Note(metric, path, v)
			}
		}
	}
	return r
}

func TestJudge(t *testing.T) {
	one, sixteen := roundTrips(1, 1024).name, roundTrips(16, 1024).name
	fair, unfair := neighbours[0], neighbours[1]
	up := bulk(toServer, load.Up, 1).name
	r := sample(map[string]map[string]float64{
		one + ", p50":                         {Tacit: 80, Envoy: 100, TacitNear: 50},
		sixteen + ", p50":                     {Skipped: 140, Direct: 100},
		sixteen + ", " + rate:                 {Tacit: 90, Envoy: 100},
		atRate + ", p99":                      {Direct: 1000, Tacit: 1060, Envoy: 1100},
		up + ", " + bytesEach:                 {Tacit: 100, TacitNear: 290, DirectNear: 400, Envoy: 0},
		fair.name(SentDirectly) + ", p99":     {Tacit: 1000},
		fair.name(ThroughProxies) + ", p99":   {Tacit: 1299},
		unfair.name(SentDirectly) + ", p99":   {Tacit: 1000},
		unfair.name(ThroughProxies) + ", p99": {Tacit: 1301},
	})
	r.Note(baseMemory, Tacit, 26)
	Judge(r)
	for what, want := range map[string]struct {
		met  bool
		text string
	}{
		"round trip, 1 connection: p50":        {true, "0.80 × envoy; at most 0.85; goal 0.65, not reached"},
		"round trips a second, 16 connections": {false, "0.90 × envoy; at least 1; goal 1.2, not reached"},
		"p99 at 1,000 a second, above direct":  {true, "0.60 × envoy; at most 1; goal 0.7, reached"},
		"memory of an idle proxy, MB":          {false, "26.0; at most 25; goal 18, not reached"},
		"one node: p50 of a round trip":        {false, "0.62 × tacit; at most 0.6"},
		"skipped port, " + sixteen:             {true, "p50 1.40 × direct"}, // of one sample each
		"fairness: p99 beside " + fair.what:    {true, "1299 µs; at most 1300"},
		"fairness: p99 beside " + unfair.what:  {false, "1301 µs; at most 1300"},
	} {
		i := slices.IndexFunc(r.Verdicts, func(v report.Verdict) bool { return strings.HasPrefix(v.What, what) })
		if i < 0 || r.Verdicts[i].Met != want.met || !strings.HasPrefix(r.Verdicts[i].Text, want.text) {
			t.Errorf("%s: want %v in %+v", what, want, r.Verdicts)
		}
	}
	if slices.ContainsFunc(r.Verdicts, func(v report.Verdict) bool { return v.What == up+": bytes" }) {
		t.Error("compared with nothing")
	}
	for range 9 {
		r.Note(r.Row(sixteen, "p50").Metric, Skipped, 140)
		r.Note(r.Row(sixteen, "p50").Metric, Direct, 100)
	}
	r.Verdicts = nil
	Judge(r)
	if i := slices.IndexFunc(r.Verdicts, func(v report.Verdict) bool { return v.What == "skipped port, "+sixteen }); r.Verdicts[i].Met {
		t.Error("a skipped port that is always slower is called alike")
	}
}

func TestDerive(t *testing.T) {
	r := sample(map[string]map[string]float64{
		roundTrips(1, 1024).name + ", p50":      {Envoy: 746},
		roundTrips(16, 1024).name + ", " + rate: {Envoy: 28560, Tacit: 28000},
		atRate + ", p99":                        {Direct: 100, Envoy: 313},
	})
	Derive(r, "linkerd2-proxy")
	for _, c := range []struct {
		load, figure string
		want         float64
	}{
		{roundTrips(1, 1024).name, "p50", 676},
		{roundTrips(16, 1024).name, rate, 33900},
		{atRate, "p99", 100 + 213*495.0/426},
	} {
		if got, _ := r.Row(c.load, c.figure).Median("linkerd2-proxy, derived"); abs(got-c.want) > 0.001*c.want {
			t.Errorf("%s, %s: %v, want %v", c.load, c.figure, got, c.want)
		}
	}
	if best := r.BestPeer(r.Row(roundTrips(16, 1024).name, rate)); best != "linkerd2-proxy, derived" {
		t.Errorf("the best peer is %s", best)
	}
	without := sample(map[string]map[string]float64{atRate + ", p99": {Tacit: 1}})
	Derive(without, "ztunnel")
	if len(without.Paths) != 4 || len(without.Notes) > 0 {
		t.Error("figures are derived from an Envoy that is not there")
	}
}
