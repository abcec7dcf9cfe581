package hour

import (
	"cmp"
	"slices"
	"time"
	"unique"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

// key is shared by all minutes that have the pair.
type key = unique.Handle[flows.PairKey]

// minute is one that is still told of.
type minute struct {
	at    int64 // since 1970
	pairs map[key]*flows.Counts
}

// minuteOf counts minutes since 1970.
func minuteOf(t time.Time) int64 { return t.Unix() / 60 }

// count adds pairs to the minute in which they were counted, where that can be:
// else to the present one.
func (h *Hour) count(s *sight.Summary, now time.Time) {
	present := minuteOf(now)
	h.advance(present)
	at := s.GetMinute()
	if at > present || at <= present-openMinutes {
		at = present
	}
	m := h.minute(at)
	for _, p := range s.GetPairs() {
		k, ok := keyOf(p)
		if !ok {
			continue
		}
		addTo(m.find(k), p)
	}
}

// advance packs the minutes that are over and forgets those before the hour.
func (h *Hour) advance(present int64) {
	for len(h.open) > 0 && h.open[0].at <= present-openMinutes {
		h.packed = append(h.packed, h.open[0].pack())
		h.open = h.open[1:]
	}
	oldest := present - int64(Length/time.Minute)
	h.packed = slices.DeleteFunc(h.packed, func(p packed) bool { return p.at <= oldest })
}

// minute is the open one of that number, a new one if there is none.
func (h *Hour) minute(at int64) *minute {
	i, found := slices.BinarySearchFunc(h.open, at, func(m *minute, at int64) int { return cmp.Compare(m.at, at) })
	if !found {
		h.open = slices.Insert(h.open, i, &minute{at: at, pairs: map[key]*flows.Counts{}})
	}
	return h.open[i]
}

// find makes room for a pair; the others take those that have none.
func (m *minute) find(k flows.PairKey) *flows.Counts {
	handle := unique.Make(k)
	if c := m.pairs[handle]; c != nil {
		return c
	}
	if len(m.pairs) >= maxPairs {
		k.Source, k.Destination = flows.Other, flows.Other
		k.Why = ""
		handle = unique.Make(k)
	}
	c := m.pairs[handle]
	if c == nil {
		c = &flows.Counts{}
		m.pairs[handle] = c
	}
	return c
}

// securities are the ways of travelling, which bound how many others there are.
var securities = []string{"", "mtls", "local", "plain", "skipped", "passthrough"}

func keyOf(p *sight.Pair) (flows.PairKey, bool) {
	from, to := p.GetSource(), p.GetDestination()
	if !slices.Contains(securities, p.GetSecurity()) || !isWord(p.GetWhy()) ||
		!isName(from.GetNamespace()) || !isName(from.GetName()) || !isName(to.GetNamespace()) || !isName(to.GetName()) {
		return flows.PairKey{}, false
	}
	k := flows.PairKey{Direction: "outbound", Source: party(from), Destination: party(to), Security: p.GetSecurity(), Why: text(p.GetWhy())}
	if p.GetInbound() {
		k.Direction = "inbound"
	}
	return k, true
}

func addTo(c *flows.Counts, p *sight.Pair) {
	c.Connections += p.GetConnections()
	c.Live = uint64(max(0, int64(c.Live)+p.GetLive()))
	c.Requests += p.GetRequests()
	c.Denied += p.GetDenied()
	c.Failed += p.GetFailed()
	c.Sent += p.GetSent()
	c.Received += p.GetReceived()
	for i, n := range p.GetLatency()[:min(len(p.GetLatency()), flows.LatencyBuckets)] {
		c.Latency[i] += n
	}
}

// Window is a stretch of the hour.
type Window struct {
	Pairs []flows.Pair
	// From is the start of the oldest minute in it, To the end of the newest.
	From, To time.Time
}

// Between sums up the minutes that begin at from or later, and before to. How
// many connections are open is said by the newest minute that is whole, as each
// says it anew.
func (h *Hour) Between(from, to time.Time) Window {
	first, last := minuteOf(from.Add(time.Minute-time.Nanosecond)), minuteOf(to.Add(-time.Nanosecond))
	sums := map[key]*flows.Counts{}
	add := func(k key, c *flows.Counts, live bool) {
		sum := sums[k]
		if sum == nil {
			sum = &flows.Counts{}
			sums[k] = sum
		}
		open := sum.Live
		sum.Add(c)
		if sum.Live = open; live {
			sum.Live = c.Live
		}
	}
	for _, p := range h.all() {
		if p.at >= first && p.at <= last {
			p.each(func(k key, c *flows.Counts) { add(k, c, p.at >= last-1) })
		}
	}
	w := Window{Pairs: make([]flows.Pair, 0, len(sums)), From: time.Unix(first*60, 0).UTC(), To: time.Unix((last+1)*60, 0).UTC()}
	for k, c := range sums {
		w.Pairs = append(w.Pairs, flows.Pair{PairKey: k.Value(), Counts: *c})
	}
	return w
}

// all are the minutes, oldest first. Those that are packed change no more, so
// nobody waits while they are read.
func (h *Hour) all() []packed {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.packed)
	for _, m := range h.open {
		out = append(out, m.pack())
	}
	return out
}

// Oldest is the start of the first minute that is remembered; zero if there is
// none.
func (h *Hour) Oldest() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case len(h.packed) > 0:
		return time.Unix(h.packed[0].at*60, 0).UTC()
	case len(h.open) > 0:
		return time.Unix(h.open[0].at*60, 0).UTC()
	}
	return time.Time{}
}
