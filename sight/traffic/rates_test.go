package traffic

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

func TestRates(t *testing.T) {
	counted := func(security string, c flows.Counts) Pair {
		return Pair{Key{Source: web, Destination: api, Security: security}, c}
	}
	slow := [flows.LatencyBuckets]uint64{1: 90, 4: 10}
	before := []Pair{
		counted("mtls", flows.Counts{Connections: 10, Requests: 100, Sent: 1000, Denied: 1}), counted("skipped", flows.Counts{Connections: 5}),
		counted("passthrough", flows.Counts{Connections: 50}),
	}
	after := []Pair{
		counted("mtls", flows.Counts{Connections: 14, Live: 3, Requests: 120, Sent: 2000, Received: 1000, Denied: 1, Latency: slow}), counted("skipped", flows.Counts{Connections: 5}),
		counted("plain", flows.Counts{Denied: 7}), counted("passthrough", flows.Counts{Connections: 4}), // its proxy began anew
	}
	got := Rates(before, after, 2*time.Second)
	want := []Rate{
		{Key: after[0].Key, Live: 3, Connections: 2, Requests: 10, Bytes: 1000, Median: 128, P99: 1024},
		{Key: after[2].Key, Denied: 7}, {Key: after[3].Key, Connections: 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for order, first := range map[string]string{"busy": "mtls", "bytes": "mtls", "latency": "mtls", "denied": "plain", "plain": "plain"} {
		if SortRates(got, order); got[0].Security != first {
			t.Errorf("by %s the first is %s, want %s", order, got[0].Security, first)
		}
	}
}
