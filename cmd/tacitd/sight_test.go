package main

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/sight/hour"
	"github.com/tacit-mesh/tacit/xds/api/sight"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The nodes that a rotation waits for are those with captured pods, and whoever
// else tells something; of those that are silent the roots are not known.
func TestJudges(t *testing.T) {
	began := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	digest := ca.Digest{1}
	snapshot := model.NewSnapshot().Apply(model.Update{Workloads: []*model.Workload{
		{UID: "1", Node: "captured", Protocol: model.ProtocolHBONE}, {UID: "2", Node: "quiet", Protocol: model.ProtocolHBONE}, {UID: "3", Node: "plain"},
	}, AddressesComplete: true})
	known := false
	s := &observed{hour: hour.New(), mesh: func() *model.Snapshot { return snapshot }, known: func() bool { return known }, began: began, settling: settling(time.Hour)}
	tellAs := func(process uint64, node string, digest ca.Digest, at time.Time) {
		s.hour.Take(node, &sight.Summary{Process: process, Sequence: 1, Roots: []*sight.Roots{{Digests: [][]byte{digest[:]}}}}, at)
	}
	tell := func(node string, at time.Time) { tellAs(1, node, digest, at) }
	now := began.Add(3 * time.Minute)
	tell("captured", now)
	tellAs(2, "empty", ca.Digest{2}, now.Add(-silence)) // it has ended
	tell("empty", now)
	tellAs(1, "two", ca.Digest{2}, now.Add(-time.Second))
	tellAs(2, "two", digest, now)
	tell("gone", now.Add(-silence))
	tell("quiet", now.Add(-silence))
	if nodes, ok := s.judges(now); ok {
		t.Errorf("without a mesh: %v", nodes)
	}
	known = true
	if nodes, ok := s.judges(now.Add(-time.Second)); ok {
		t.Errorf("before all have had the time to tell: %v", nodes)
	}
	nodes, ok := s.judges(now)
	got := map[string][]ca.Judges{}
	for _, n := range nodes {
		slices.SortFunc(n.Proxies, func(a, b ca.Judges) int { return slices.Compare(a[0][0][:], b[0][0][:]) })
		got[n.Name] = n.Proxies
	}
	want := map[string][]ca.Judges{"captured": {{{digest}}}, "empty": {{{digest}}}, "two": {{{digest}}, {{ca.Digest{2}}}}, "quiet": nil}
	if !ok || len(nodes) != len(want) || !cmp.Equal(got, want) {
		t.Errorf("%v, %v, want %v", nodes, ok, want)
	}
}

// A rotation with certificates that live shortly is not held up for longer than
// one of them.
func TestSettling(t *testing.T) {
	for life, want := range map[time.Duration]time.Duration{24 * time.Hour: 3 * time.Minute, 30 * time.Second: 30 * time.Second} {
		if got := settling(life); got != want {
			t.Errorf("with a life of %v: %v, want %v", life, got, want)
		}
	}
}
