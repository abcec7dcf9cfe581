package traffic

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

// Rate is what a pair did between two looks at the counts.
type Rate struct {
	Key
	Live uint64 `json:"live"` // connections that are open now
	// By the second.
	Connections float64 `json:"connectionsPerSecond"` // that ended
	Requests    float64 `json:"requestsPerSecond"`
	Bytes       float64 `json:"bytesPerSecond"`
	Denied      uint64  `json:"denied"` // connections and requests, in this time
	Failed      uint64  `json:"failed"`
	// Median and P99 are in microseconds, the upper ends of buckets: of
	// requests, and of what the proxies added to connections; 0 for none.
	Median uint64 `json:"medianMicros"`
	P99    uint64 `json:"p99Micros"`
}

// Rates are what happened between two times; pairs of which there is nothing to
// say are left out.
func Rates(before, after []Pair, took time.Duration) []Rate {
	known := make(map[Key]flows.Counts, len(before))
	for i := range before {
		known[before[i].Key] = before[i].Counts
	}
	out := []Rate{}
	second := float64(time.Second) / float64(max(took, time.Millisecond))
	for i := range after {
		p, old := &after[i], known[after[i].Key]
		var latency [flows.LatencyBuckets]uint64
		for b := range latency {
			latency[b] = grown(p.Latency[b], old.Latency[b])
		}
		r := Rate{
			Key: p.Key, Live: p.Live, Denied: grown(p.Denied, old.Denied), Failed: grown(p.Failed, old.Failed),
			Connections: second * float64(grown(p.Connections, old.Connections)), Requests: second * float64(grown(p.Requests, old.Requests)),
			Bytes:  second * float64(grown(p.Sent, old.Sent)+grown(p.Received, old.Received)),
			Median: Quantile(&latency, 0.5), P99: Quantile(&latency, 0.99),
		}
		if r.Live > 0 || r.Connections > 0 || r.Requests > 0 || r.Denied > 0 || r.Failed > 0 || r.Bytes > 0 {
			out = append(out, r)
		}
	}
	return out
}

// grown is by how much a count has; a proxy that began anew has counted less.
func grown(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// Quantile is the upper end of the bucket in which it falls, in microseconds; 0
// where nothing was counted.
func Quantile(buckets *[flows.LatencyBuckets]uint64, q float64) uint64 {
	var total, sum uint64
	for _, n := range buckets {
		total += n
	}
	for i, n := range buckets {
		if sum += n; n > 0 && float64(sum) >= q*float64(total) {
			return 64 << i
		}
	}
	return 0
}

// Orders are what rates can be sorted by, the most of it first.
var Orders = []string{"busy", "bytes", "latency", "denied", "plain"}

// SortRates sorts by one of the Orders.
func SortRates(all []Rate, order string) {
	busy := func(r *Rate) float64 { return r.Connections + r.Requests + float64(r.Denied+r.Failed) }
	by := map[string]func(*Rate) float64{
		"bytes":   func(r *Rate) float64 { return r.Bytes },
		"latency": func(r *Rate) float64 { return float64(r.P99) },
		"denied":  func(r *Rate) float64 { return float64(r.Denied) },
		"plain": func(r *Rate) float64 {
			if r.Security == "mtls" {
				return 0
			}
			return 1 + busy(r)
		},
	}[order]
	if by == nil {
		by = busy
	}
	slices.SortFunc(all, func(a, b Rate) int {
		return cmp.Or(cmp.Compare(by(&b), by(&a)), cmp.Compare(busy(&b), busy(&a)), cmp.Compare(b.Live, a.Live), strings.Compare(a.text(), b.text()))
	})
}
