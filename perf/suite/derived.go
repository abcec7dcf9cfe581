package suite

import (
	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
)

// Envoy is the path that is always there, and which others' published figures
// are relative to.
const Envoy = "envoy"

// published is one run of others on one machine, of which only ratios mean
// something elsewhere.
type published struct {
	load, figure            string
	direct                  float64 // where only what is above it is comparable
	envoy, ztunnel, linkerd float64
}

func publishedRun() []published {
	one, sixteen, connect := roundTrips(1, 1024).name, roundTrips(16, 1024).name, newConnections(16).name
	bulk1, bulk16 := bulk(toServer, load.Up, 1).name, bulk(toServer, load.Up, 16).name
	return []published{
		{one, "p50", 0, 373, 373, 338},
		{sixteen, rate, 0, 14280, 12830, 16950},
		{sixteen, cpuEach, 0, 83, 85, 64},
		{atRate, "p99", 1300, 1726, 1869, 1795},
		{bulk1, bytesEach, 0, 5.0, 3.9, 2.0},
		{bulk16, bytesEach, 0, 5.4, 3.8, 3.2},
		{bulk1, cpuPerGB, 0, 2.2, 2.4, 5.3},
		{bulk16, cpuPerGB, 0, 2.4, 2.8, 4.1},
		{connect, rate, 0, 1132, 2982, 1194},
		{connect, cpuEach, 0, 1302, 351, 1307},
		{memory, baseMemory.Name, 0, 198, 37, 41},
		{memory, idleMemory(1000).Name, 0, 33, 9.0, 64},
	}
}

// Derive adds what a peer that is absent would show here, if it were to Envoy as
// it is in the published run. Name is "ztunnel" or "linkerd2-proxy".
func Derive(r *report.Report, name string) {
	path := report.Path{Name: name + ", derived", Class: report.Derived}
	found := false
	for _, p := range publishedRun() {
		x := r.Row(p.load, p.figure)
		if x == nil {
			continue
		}
		value := p.ztunnel
		if name == "linkerd2-proxy" {
			value = p.linkerd
		}
		for i, envoy := range x.Samples[Envoy] {
			base := 0.0
			if p.direct > 0 {
				if i >= len(x.Samples[Direct]) {
					continue
				}
				base = x.Samples[Direct][i]
			}
			found = true
			r.Note(x.Metric, path.Name, base+(envoy-base)*(value-p.direct)/(p.envoy-p.direct))
		}
	}
	if found {
		r.Paths = append(r.Paths, path)
		r.Notes = append(r.Notes, path.Name+": it is absent; this is Envoy's figure here times the ratio of the two in a published run.")
	}
}
