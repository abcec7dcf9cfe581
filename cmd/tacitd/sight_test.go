package main

import (
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
	s := &observed{hour: hour.New(), mesh: func() *model.Snapshot { return snapshot }, known: func() bool { return known }, began: began}
	tell := func(node string, at time.Time) {
		s.hour.Take(node, &sight.Summary{Sequence: 1, Roots: []*sight.Roots{{Digests: [][]byte{digest[:]}}}}, at)
	}
	now := began.Add(settling)
	tell("captured", now)
	tell("empty", now)
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
	got := map[string][][]ca.Digest{}
	for _, n := range nodes {
		got[n.Name] = n.Judges
	}
	want := map[string][][]ca.Digest{"captured": {{digest}}, "empty": {{digest}}, "quiet": nil}
	if !ok || len(nodes) != len(want) || !cmp.Equal(got, want) {
		t.Errorf("%v, %v, want %v", nodes, ok, want)
	}
}
