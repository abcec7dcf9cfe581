package hour

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/api/sight"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func pair(from, to string, edits ...func(*sight.Pair)) *sight.Pair {
	p := &sight.Pair{Inbound: true, Source: &sight.Party{Namespace: "web", Name: from}, Destination: &sight.Party{Namespace: "shop", Name: to}, Security: "mtls", Connections: 1}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

var sequence uint64

// take gives an hour a summary that was not there before.
func take(h *Hour, node string, s *sight.Summary, now time.Time) {
	sequence++
	s.Sequence = sequence
	h.Take(node, s, now)
}

func tell(h *Hour, at time.Time, pairs ...*sight.Pair) {
	take(h, "n1", &sight.Summary{Minute: minuteOf(at), Pairs: pairs}, at)
}

func counts(w Window) map[string]flows.Counts {
	out := map[string]flows.Counts{}
	for _, p := range w.Pairs {
		out[p.Source.Name+">"+p.Destination.Name+" "+p.Direction] = p.Counts
	}
	return out
}

// A summary whose answer was lost comes twice and counts once.
func TestTwice(t *testing.T) {
	h := New()
	for _, sequence := range []uint64{1, 1, 2, 2, 1} {
		h.Take("n1", &sight.Summary{Process: 7, Sequence: sequence, Pairs: []*sight.Pair{pair("a", "b")}}, noon)
	}
	h.Take("n1", &sight.Summary{Process: 8, Sequence: 1, Pairs: []*sight.Pair{pair("a", "b")}}, noon)
	if got := counts(h.Between(noon, noon.Add(time.Minute)))["a>b inbound"].Connections; got != 3 {
		t.Errorf("%d connections, want 3", got)
	}
	for i := range uint64(10 * maxProcesses) {
		h.Take("n1", &sight.Summary{Process: i, Sequence: 1}, noon)
	}
	if got := len(h.nodes["n1"].processes); got > maxProcesses {
		t.Errorf("%d processes of a node are remembered", got)
	}
}

// What was told minute by minute is summed up over any stretch of the hour, and
// forgotten after it; minutes that are packed say what they said before.
func TestWindows(t *testing.T) {
	h := New()
	const minutes = 90
	for i := range minutes {
		tell(h, noon.Add(time.Duration(i)*time.Minute), pair("a", "b", func(p *sight.Pair) {
			p.Connections, p.Sent, p.Live, p.Latency = 1, uint64(i), 2, []uint64{0, 0, 3}
		}))
	}
	last := noon.Add((minutes - 1) * time.Minute)
	all := counts(h.Between(last.Add(-2*time.Hour), last.Add(time.Minute)))["a>b inbound"]
	if all.Connections != 60 || all.Live != 2 || all.Latency[2] != 180 || all.Latency[1] != 0 {
		t.Errorf("of the whole hour: %+v", all)
	}
	five := counts(h.Between(last.Add(-40*time.Minute), last.Add(-35*time.Minute)))["a>b inbound"]
	if want := uint64(49 + 50 + 51 + 52 + 53); five.Connections != 5 || five.Sent != want {
		t.Errorf("of five minutes: %+v, want %d bytes", five, want)
	}
	if got := h.Oldest(); !got.Equal(last.Add(-59 * time.Minute)) {
		t.Errorf("the oldest minute is %v", got)
	}
	if len(h.open) != openMinutes {
		t.Errorf("%d minutes are open", len(h.open))
	}
}

// A summary that comes late counts in its minute; one of a clock that is wrong,
// in the present.
func TestMinutesOfOthers(t *testing.T) {
	h := New()
	for _, m := range []struct {
		said time.Duration
		name string
	}{{-2 * time.Minute, "late"}, {-time.Hour, "old"}, {time.Hour, "ahead"}} {
		take(h, "n1", &sight.Summary{Minute: minuteOf(noon.Add(m.said)), Pairs: []*sight.Pair{pair(m.name, "b")}}, noon)
	}
	before, present := counts(h.Between(noon.Add(-2*time.Minute), noon)), counts(h.Between(noon, noon.Add(time.Minute)))
	if len(before) != 1 || before["late>b inbound"].Connections != 1 {
		t.Errorf("two minutes before: %v", before)
	}
	if len(present) != 2 || present["old>b inbound"].Connections != 1 || present["ahead>b inbound"].Connections != 1 {
		t.Errorf("now: %v", present)
	}
}

// Open connections are told of anew in each minute, as changes within it.
func TestLive(t *testing.T) {
	h := New()
	live := func(n int64) func(*sight.Pair) { return func(p *sight.Pair) { p.Connections, p.Live = 0, n } }
	tell(h, noon, pair("a", "b", live(5)))
	tell(h, noon.Add(10*time.Second), pair("a", "b", live(-2)))
	tell(h, noon.Add(20*time.Second), pair("a", "b", live(-9))) // more than there are
	tell(h, noon.Add(30*time.Second), pair("a", "b", live(4)))
	tell(h, noon.Add(time.Minute), pair("a", "b", live(1)))
	if got := counts(h.Between(noon, noon.Add(time.Minute)))["a>b inbound"].Live; got != 4 {
		t.Errorf("%d are open in the first minute, want 4", got)
	}
	if got := counts(h.Between(noon, noon.Add(2*time.Minute)))["a>b inbound"].Live; got != 1 {
		t.Errorf("%d are open in the end, want 1", got)
	}
}

// Whatever a node says, what is kept is bounded, and nothing is lost of the sum.
func TestBounds(t *testing.T) {
	h := New()
	const more = 100
	for i := range maxPairs + more {
		tell(h, noon, pair(fmt.Sprint("w", i), "b"))
	}
	now := counts(h.Between(noon, noon.Add(time.Minute)))
	if others := now["(other)>(other) inbound"]; len(now) != maxPairs+1 || others.Connections != more {
		t.Errorf("%d pairs, and of others %+v; want %d and %d", len(now), others, maxPairs+1, more)
	}
	long := strings.Repeat("x", maxName+1)
	tell(h, noon.Add(5*time.Minute),
		pair(long, "b"), pair("a", long), pair("a", "b", func(p *sight.Pair) { p.Security = "quantum" }), pair("a", "b", func(p *sight.Pair) { p.Why = "<b>" }),
		pair("fine", "b", func(p *sight.Pair) { p.Latency = make([]uint64, 1000); p.Sent = math.MaxUint64 }), &sight.Pair{Security: "plain"})
	got := counts(h.Between(noon.Add(5*time.Minute), noon.Add(6*time.Minute)))
	if len(got) != 2 || got["fine>b inbound"].Connections != 1 {
		t.Errorf("of what is not well formed is kept: %v", got)
	}
	for i := range maxNodes + 1 {
		take(h, fmt.Sprint("node-", i), &sight.Summary{}, noon)
	}
	if got := len(h.Nodes(noon)); got != maxNodes {
		t.Errorf("%d nodes are known, the bound is %d", got, maxNodes)
	}
	if got := len(h.Nodes(noon.Add(Length + time.Second))); got != 1 { // n1 has told something later
		t.Errorf("%d nodes after an hour, want 1", got)
	}
}

func denial(id, from, to string, at time.Time, edits ...func(*sight.Denial)) *sight.Denial {
	d := &sight.Denial{
		Id: id, TimeMicros: at.UnixMicro(), Inbound: true, Source: &sight.Party{Namespace: "web", Name: from}, Destination: &sight.Party{Namespace: "shop", Name: to},
		Security: "mtls", Policy: "shop/only-web", Reason: "not_allowed", Attribute: "principals",
	}
	for _, edit := range edits {
		edit(d)
	}
	return d
}

func TestDenials(t *testing.T) {
	h := New()
	var told []*sight.Denial
	for i := range maxDenials + 4 {
		told = append(told, denial(fmt.Sprint("id-", i), "a", "b", noon.Add(time.Duration(i)*time.Second)))
	}
	told[2], told[9] = told[9], told[2]
	outbound := denial("id-19", "a", "b", noon.Add(20*time.Second), func(d *sight.Denial) { d.Inbound = false })
	late := noon.Add(time.Minute)
	take(h, "n1", &sight.Summary{Denials: append(told, outbound, denial("future", "a", "b", late.Add(time.Hour)))}, late)

	b := h.Denials(flows.Party{Namespace: "shop", Name: "b"}, late)
	var ids []string
	for _, d := range b {
		ids = append(ids, d.ID)
	}
	var want []string
	for i := maxDenials + 3; i > maxDenials+3-(maxDenials-1); i-- { // the client's node has told of the newest, too
		want = append(want, fmt.Sprint("id-", i))
	}
	if diff := cmp.Diff(want, ids); diff != "" {
		t.Errorf("denials of b, -want +got:\n%s", diff)
	}
	if !b[0].Inbound || b[0].Policy != "shop/only-web" || b[0].Node != "n1" {
		t.Errorf("the newest is %+v", b[0])
	}
	if got := h.Denials(flows.Party{Namespace: "web", Name: "a"}, noon.Add(10*time.Second)); len(got) != 6 {
		t.Errorf("%d denials of a after ten seconds, want 6", len(got))
	}
	if got := h.Denials(flows.Party{Namespace: "shop", Name: "b"}, late.Add(Length)); len(got) != 0 {
		t.Errorf("%d denials after the hour", len(got))
	}
}

// Of too many parties those are forgotten that were denied the longest ago.
func TestDenialsOfMany(t *testing.T) {
	h := New()
	for i := range maxParties + 3 {
		at := noon.Add(time.Duration(i) * time.Millisecond)
		take(h, "n1", &sight.Summary{Denials: []*sight.Denial{denial("x", "", fmt.Sprint("w", i), at, func(d *sight.Denial) { d.Source = nil })}}, noon.Add(time.Minute))
	}
	of := func(i int) int {
		return len(h.Denials(flows.Party{Namespace: "shop", Name: fmt.Sprint("w", i)}, noon.Add(time.Minute)))
	}
	if len(h.denials) != maxParties || of(2) != 0 || of(3) != 1 {
		t.Errorf("%d parties have denials; the third %d, the fourth %d", len(h.denials), of(2), of(3))
	}
}

func TestUsesAndCertificates(t *testing.T) {
	h := New()
	take(h, "n1", &sight.Summary{
		ListsCertificates: true, Certificates: []*sight.Certificate{{Identity: "spiffe://t/ns/a/sa/b", NotAfter: noon.Unix()}},
		Uses: []*sight.Use{{Policy: "shop/p", Last: noon.Unix()}, {Policy: "shop/gone", Last: noon.Unix()}, {Policy: "shop/q", Last: noon.Add(time.Hour).Unix()}},
	}, noon)
	take(h, "n2", &sight.Summary{Uses: []*sight.Use{{Policy: "shop/p", Last: noon.Add(-time.Minute).Unix()}}}, noon)
	want := map[string]time.Time{"shop/p": noon, "shop/q": noon}
	notGone := func(p string) bool { return p != "shop/gone" }
	for range 2 {
		if diff := cmp.Diff(want, h.Uses(notGone, noon)); diff != "" {
			t.Errorf("uses, -want +got:\n%s", diff)
		}
	}
	// What is not known yet, as before the mesh is, is not forgotten at once.
	none := func(string) bool { return false }
	if got := h.Uses(none, noon.Add(strangeFor-time.Second)); len(got) != 0 {
		t.Errorf("not known, and of use: %v", got)
	}
	for _, test := range []struct {
		at   time.Time
		want int
	}{{noon.Add(strangeFor - time.Second), 3}, {noon.Add(strangeFor), 3}} {
		if got := h.Uses(nil, test.at); len(got) != test.want {
			t.Errorf("%v: %v, want %d", test.at, got, test.want)
		}
	}
	for _, at := range []time.Time{noon, noon.Add(strangeFor)} {
		h.Uses(notGone, at)
	}
	if got := h.Uses(nil, noon.Add(strangeFor)); !cmp.Equal(want, got) {
		t.Errorf("gone for long: %v, want %v", got, want)
	}
	if all := h.Certificates("spiffe://t/ns/a/sa/b"); len(all) != 1 || all[0].Node != "n1" || !all[0].NotAfter.Equal(noon) {
		t.Errorf("certificates: %+v", all)
	}
	take(h, "n1", &sight.Summary{ListsCertificates: true}, noon)
	if all := h.Certificates("spiffe://t/ns/a/sa/b"); len(all) != 0 {
		t.Errorf("certificates that are gone: %+v", all)
	}
}

// BenchmarkTake is a summary of 500 pairs, as of a node with 10,000 flows a
// second; each node sends one every ten seconds.
func BenchmarkTake(b *testing.B) {
	h := New()
	s := &sight.Summary{}
	for i := range 500 {
		s.Pairs = append(s.Pairs, pair(fmt.Sprint("w", i), "b", func(p *sight.Pair) { p.Latency = []uint64{0, 5, 100, 20, 1} }))
	}
	b.ReportAllocs()
	for i := range b.N {
		now := noon.Add(time.Duration(i) * time.Second)
		s.Minute = minuteOf(now)
		take(h, "n1", s, now)
	}
}

// BenchmarkBetween sums up an hour of 5,000 pairs told of by both nodes.
func BenchmarkBetween(b *testing.B) {
	h := New()
	for i := range 60 {
		now := noon.Add(time.Duration(i) * time.Minute)
		for j := range 10000 {
			tell(h, now, pair(fmt.Sprint("w", j/2), "b", func(p *sight.Pair) { p.Inbound, p.Latency, p.Sent = j%2 == 0, []uint64{0, 5, 100, 20, 1}, 4096 }))
		}
	}
	size := 0
	for _, p := range h.packed {
		size += len(p.counts) + 8*len(p.keys)
	}
	b.ResetTimer()
	for range b.N {
		h.Between(noon, noon.Add(time.Hour))
	}
	b.ReportMetric(float64(size)/(1<<20), "MiB")
}

// The roots of a node are as it said last, and none if anything is wrong with
// them.
func TestRoots(t *testing.T) {
	good := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 32) }
	set := func(digests ...[]byte) *sight.Roots { return &sight.Roots{Digests: digests} }
	for name, c := range map[string]struct {
		said []*sight.Roots
		want [][]Digest
	}{
		"nothing":       {nil, nil},
		"two sets":      {[]*sight.Roots{set(), set(good(1), good(2))}, [][]Digest{{}, {Digest(good(1)), Digest(good(2))}}},
		"a short one":   {[]*sight.Roots{set(good(1)), set(good(1)[1:])}, nil},
		"too many":      {[]*sight.Roots{set(slices.Repeat([][]byte{good(1)}, maxRoots+1)...)}, nil},
		"too many sets": {slices.Repeat([]*sight.Roots{set(good(1))}, maxRoots+1), nil},
	} {
		h := New()
		take(h, "n1", &sight.Summary{Roots: []*sight.Roots{set(good(9))}}, noon)
		take(h, "n1", &sight.Summary{Roots: c.said}, noon)
		want := []Node{{"n1", noon, []Proxy{{noon, c.want}}}}
		if diff := cmp.Diff(want, h.Nodes(noon)); diff != "" {
			t.Errorf("%s, -want +got:\n%s", name, diff)
		}
	}
}

// Each proxy of a node has roots of its own, from its first word on, until it
// has been silent for an hour or many have come after it.
func TestRootsOfProxies(t *testing.T) {
	h := New()
	digest := func(n uint64) Digest { return Digest{byte(n)} }
	told := func(process, sequence, root uint64, at time.Time) {
		d := digest(root)
		h.Take("n1", &sight.Summary{Process: process, Sequence: sequence, Roots: []*sight.Roots{{Digests: [][]byte{d[:]}}}}, at)
	}
	check := func(what string, now time.Time, want ...Proxy) {
		t.Helper()
		nodes := h.Nodes(now)
		if len(nodes) != 1 {
			t.Fatalf("%s: %v", what, nodes)
		}
		slices.SortFunc(nodes[0].Proxies, func(a, b Proxy) int { return a.Last.Compare(b.Last) })
		if diff := cmp.Diff(want, nodes[0].Proxies); diff != "" {
			t.Errorf("%s, -want +got:\n%s", what, diff)
		}
	}
	at := func(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }
	told(1, 5, 10, at(0))
	h.Take("n1", &sight.Summary{Process: 2}, at(1))
	h.Take("n1", &sight.Summary{}, at(1)) // by a version that does not say which it is
	check("one greets", at(1), Proxy{at(0), [][]Digest{{digest(10)}}}, Proxy{at(1), nil})
	told(2, 1, 20, at(2))
	told(1, 6, 11, at(3))
	check("the older one has the last word", at(3), Proxy{at(2), [][]Digest{{digest(20)}}}, Proxy{at(3), [][]Digest{{digest(11)}}})
	h.Take("n1", &sight.Summary{Process: 2}, at(4))
	told(1, 6, 12, at(5)) // for the second time
	check("both come back", at(5), Proxy{at(4), [][]Digest{{digest(20)}}}, Proxy{at(5), [][]Digest{{digest(11)}}})
	check("after an hour", at(4).Add(Length+1), Proxy{at(5), [][]Digest{{digest(11)}}})
	for i := range uint64(maxProcesses - 1) {
		told(100+i, 1, 30, at(6))
	}
	if p := h.nodes["n1"].processes; p[1] == nil || p[2] != nil {
		t.Errorf("of many, not the one is forgotten that has been silent for the longest time")
	}
}
