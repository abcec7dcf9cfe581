package flows

import (
	"cmp"
	"iter"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Bounds of the table of pairs: about 2 MB. A pair that was not used for
// pairIdle gives its place to a new one and goes on to count among the others.
const (
	maxPairs  = 4096
	pairIdle  = time.Hour
	pairSweep = time.Minute // at most so often is a full table looked through
)

// Party is one side of a pair: what runs the pods, such as a Deployment. It is
// empty for what the mesh does not know.
type Party struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// Other stands for all parties of pairs that have no place of their own.
var Other = Party{Name: "(other)"}

// PairKey is what traffic is counted by.
type PairKey struct {
	Direction   string `json:"direction"` // whose node counted
	Source      Party  `json:"source"`
	Destination Party  `json:"destination"`
	Security    string `json:"security"`
	Why         string `json:"why,omitempty"`
}

// LatencyBuckets is how many there are of Counts.Latency.
const LatencyBuckets = 20

// Counts are of one pair, since the proxy began.
type Counts struct {
	// Connections are those that carried bytes and have ended, Live those
	// that are open.
	Connections uint64 `json:"connections"`
	Live        uint64 `json:"live"`
	Requests    uint64 `json:"requests"`
	Denied      uint64 `json:"denied"` // connections and requests
	Failed      uint64 `json:"failed"`
	Sent        uint64 `json:"sent"` // bytes from the source
	Received    uint64 `json:"received"`
	// Latency counts requests by their duration and connections by what the
	// proxy added to them: the bucket i is for less than 64 << i µs.
	Latency [LatencyBuckets]uint64 `json:"latency"`
}

// Add adds what another has counted.
func (c *Counts) Add(o *Counts) {
	c.Connections += o.Connections
	c.Live += o.Live
	c.Requests += o.Requests
	c.Denied += o.Denied
	c.Failed += o.Failed
	c.Sent += o.Sent
	c.Received += o.Received
	for i, n := range o.Latency {
		c.Latency[i] += n
	}
}

// Pair is who talks to whom, and how.
type Pair struct {
	PairKey
	Counts
}

type pairCounts struct {
	Counts
	used time.Time
}

type pairTable struct {
	limit int
	pairs map[PairKey]*pairCounts
	swept time.Time
}

func newPairTable(limit int) pairTable {
	return pairTable{limit: limit, pairs: map[PairKey]*pairCounts{}}
}

// count adds what has ended.
func (t *pairTable) count(e *Event) {
	p := t.find(keyOf(e), e.Time)
	p.used = e.Time
	took := e.Added
	switch {
	case e.Outcome == "denied":
		p.Denied++
	case e.Outcome == "failed":
		p.Failed++
	case e.Kind == Requested:
		p.Requests++
		took = e.Time.Sub(e.Began)
	default:
		p.Connections++
	}
	if e.Kind != Requested {
		p.Sent += uint64(max(e.Sent, 0))
		p.Received += uint64(max(e.Received, 0))
	}
	if e.Outcome == "ok" {
		p.Latency[bucket(took)]++
	}
}

// live adds a connection that is open.
func (c *Counts) live(e *Event) {
	c.Live++
	c.Sent += uint64(max(e.Sent, 0))
	c.Received += uint64(max(e.Received, 0))
}

func bucket(d time.Duration) int {
	return min(bits.Len64(uint64(max(d, 0).Microseconds()/64)), LatencyBuckets-1)
}

func keyOf(e *Event) PairKey {
	return PairKey{direction(e.Inbound), party(&e.Source), party(&e.Destination), e.Security, why(e)}
}

func party(e *End) Party {
	if e.Workload == nil {
		return Party{e.Namespace, e.Name}
	}
	return PartyOf(e.Workload)
}

// PartyOf is what runs a pod; the pod itself if nothing else does.
func PartyOf(w *model.Workload) Party {
	if w.WorkloadName == "" {
		return Party{w.Namespace, w.Name}
	}
	return Party{w.Namespace, w.WorkloadName}
}

func (t *pairTable) find(key PairKey, now time.Time) *pairCounts {
	if p := t.pairs[key]; p != nil {
		return p
	}
	if len(t.pairs) >= t.limit && now.Sub(t.swept) >= pairSweep {
		t.sweep(now)
	}
	if len(t.pairs) >= t.limit {
		key.Source, key.Destination = Other, Other
	}
	p := t.pairs[key]
	if p == nil {
		p = &pairCounts{used: now}
		t.pairs[key] = p
	}
	return p
}

// sweep gives the counts of idle pairs to the others. There are as many others
// as ways of travelling, which is few.
func (t *pairTable) sweep(now time.Time) {
	t.swept = now
	for key, p := range t.pairs {
		if now.Sub(p.used) < pairIdle || key.Source == Other {
			continue
		}
		delete(t.pairs, key)
		key.Source, key.Destination = Other, Other
		other := t.pairs[key]
		if other == nil {
			other = &pairCounts{}
			t.pairs[key] = other
		}
		other.Add(&p.Counts)
		other.used = now
	}
}

// Pairs are all pairs, live connections included, sorted by their keys.
func (l *Log) Pairs(live iter.Seq[Event]) []Pair {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	n := len(l.pairs.pairs)
	l.mu.Unlock()
	all := make(map[PairKey]Counts, n+room)
	l.mu.Lock()
	for key, p := range l.pairs.pairs {
		all[key] = p.Counts
	}
	l.mu.Unlock()
	for e := range live {
		key := keyOf(&e)
		counts := all[key]
		counts.live(&e)
		all[key] = counts
	}
	out := make([]Pair, 0, len(all))
	for key, counts := range all {
		out = append(out, Pair{key, counts})
	}
	slices.SortFunc(out, func(a, b Pair) int { return a.compare(b.PairKey) })
	return out
}

func (k PairKey) compare(o PairKey) int {
	return cmp.Or(
		strings.Compare(k.Source.Namespace, o.Source.Namespace), strings.Compare(k.Source.Name, o.Source.Name),
		strings.Compare(k.Destination.Namespace, o.Destination.Namespace), strings.Compare(k.Destination.Name, o.Destination.Name),
		strings.Compare(k.Security, o.Security), strings.Compare(k.Why, o.Why), strings.Compare(k.Direction, o.Direction),
	)
}
