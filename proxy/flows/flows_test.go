package flows

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tacit-mesh/tacit/xds/model"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func pod(namespace, name string, edits ...func(*model.Workload)) *model.Workload {
	w := &model.Workload{
		Namespace: namespace, Name: name, WorkloadName: strings.TrimRight(name, "-0123456789"), ServiceAccount: name,
		TrustDomain: model.DefaultTrustDomain, Protocol: model.ProtocolHBONE,
	}
	for _, edit := range edits {
		edit(w)
	}
	return w
}

// event is a connection over mTLS from shop/web-1 to shop/api-1 that ended at a time.
func event(at time.Time, edits ...func(*Event)) *Event {
	web, api := pod("shop", "web-1"), pod("shop", "api-1")
	e := &Event{
		Kind: Ended, ID: "0af7651916cd43dd8448eb211c80319c", Inbound: true, Security: "mtls", Outcome: "ok",
		Began: at.Add(-time.Second), Time: at, Sent: 10, Received: 20, Added: time.Millisecond,
		Source:      End{Addr: netip.MustParseAddrPort("198.18.1.1:40000"), Workload: web, Identity: web.Identity()},
		Destination: End{Addr: netip.MustParseAddrPort("198.18.2.1:8080"), Workload: api, Identity: api.Identity()},
	}
	for _, edit := range edits {
		edit(e)
	}
	return e
}

func outcome(o string) func(*Event) { return func(e *Event) { e.Outcome = o } }

func TestRing(t *testing.T) {
	const size = 700         // not a multiple of a chunk
	l := New(size*4/3, noon) // a quarter is for others
	for i := range 2 * size {
		l.Add(event(noon.Add(time.Duration(i)*time.Second), func(e *Event) { e.Status = i; e.Kind = Requested }))
	}
	all := l.Flows(nil, time.Time{}, 1<<20)
	if len(all) != size {
		t.Fatalf("%d flows are remembered, want %d", len(all), size)
	}
	for i, f := range all {
		if f.HTTP.Status != size+i {
			t.Fatalf("flow %d is that of %d, want %d: oldest first", i, f.HTTP.Status, size+i)
		}
	}
	if n := len(l.rings[ordinary].chunks); n != (size+chunk-1)/chunk {
		t.Errorf("%d chunks", n)
	}
	newest := l.Flows(nil, time.Time{}, 3)
	if len(newest) != 3 || newest[2].HTTP.Status != 2*size-1 {
		t.Errorf("the newest three: %+v", newest)
	}
	if late := l.Flows(nil, noon.Add((2*size-10)*time.Second), 1<<20); len(late) != 10 {
		t.Errorf("%d flows of the last ten seconds, want 10", len(late))
	}
}

// Ordinary traffic pushes no denial out, nor the other way round, and what is
// remembered of both comes in the order in which it happened.
func TestDenialsAreKeptApart(t *testing.T) {
	const size = 1000
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Second) }
	l := New(size, noon)
	for i := range 10 {
		l.Add(event(at(2*i), outcome("denied")))
		l.Add(event(at(2*i+1), outcome("failed")))
	}
	for i := range 3 * size {
		l.Add(event(at(100 + i)))
	}
	troubles := l.Flows(&Filter{Outcomes: []string{"denied", "failed"}}, time.Time{}, 1<<20)
	if len(troubles) != 20 {
		t.Errorf("of 20 denials and failures %d are left after %d other flows", len(troubles), 3*size)
	}
	for i := range 3 * size {
		l.Add(event(at(10_000+i), outcome("denied")))
	}
	l.Add(event(at(5000)))
	all := l.Flows(nil, time.Time{}, 1<<20)
	if len(all) != size {
		t.Errorf("%d flows are remembered, want %d", len(all), size)
	}
	if !slices.IsSortedFunc(all, func(a, b Flow) int { return a.Time.Compare(b.Time) }) {
		t.Error("they are not in the order in which they happened")
	}
	newest := l.Flows(nil, time.Time{}, size/4+1)
	if len(newest) != size/4+1 || newest[0].Time != at(5000) || newest[1].Outcome != "denied" {
		t.Errorf("of the newest %d the first are %+v", len(newest), newest[:2])
	}
}

func TestNoLog(t *testing.T) {
	l := New(0, noon)
	if l.Takes(Ended) || l.Takes(Opened) {
		t.Error("a log of size 0 asks for events")
	}
	l.Add(event(noon))
	if l.Flows(nil, time.Time{}, 9) != nil || l.Pairs(slices.Values([]Event{})) != nil {
		t.Error("a log of size 0 remembers")
	}
	if _, err := l.Tap(nil); err == nil {
		t.Error("a log of size 0 can be tapped")
	}
	if _, matched := l.Matched(); len(matched) != 0 {
		t.Error("a log of size 0 knows policies")
	}
}

// Beyond the cap a sample is kept, of which the weights tell how many flows
// there were; the counts of pairs are of all, and denials are not drowned.
func TestSampling(t *testing.T) {
	const rate, seconds = 10_000, 5
	l := New(1<<16, noon)
	for i := range rate * seconds {
		at := noon.Add(time.Duration(i) * time.Second / rate)
		l.Add(event(at))
		if i%(rate/10) == 0 {
			l.Add(event(at, outcome("denied")))
		}
	}
	kept, denials, total := map[int64]int{}, 0, 0
	for _, f := range l.Flows(nil, time.Time{}, 1<<20) {
		if f.Outcome == "denied" {
			denials++
			continue
		}
		kept[f.Time.Unix()]++
		total += f.Weight
	}
	for second, n := range kept {
		if n > perSecond || n < perSecond*9/10 {
			t.Errorf("second %d: %d flows are kept, want up to %d", second, n, perSecond)
		}
	}
	if missing := rate*seconds - total; missing < 0 || missing > 2*rate/perSecond {
		t.Errorf("the weights sum up to %d of %d", total, rate*seconds)
	}
	if denials != 10*seconds {
		t.Errorf("%d of %d denials are kept", denials, 10*seconds)
	}
	for _, p := range l.Pairs(slices.Values([]Event{})) {
		if p.Connections != rate*seconds || p.Denied != 10*seconds {
			t.Errorf("the pair has %d connections, %d denials", p.Connections, p.Denied)
		}
	}
}

// What came later does not stand for a burst that it has nothing to do with.
func TestWeightsOfABurst(t *testing.T) {
	const burst = 3 * perSecond
	l := New(1<<16, noon)
	early := tapOf(t, l)
	open := func(e *Event) { e.Kind = Opened }
	for range burst {
		l.Add(event(noon))
		l.Add(event(noon, open))
	}
	late := tapOf(t, l)
	l.Add(event(noon.Add(time.Minute)))
	l.Add(event(noon.Add(time.Minute), open))
	all := l.Flows(nil, time.Time{}, 1<<20)
	total := 0
	for _, f := range all {
		total += f.Weight
	}
	if last := all[len(all)-1]; last.Weight != 1 || total != burst+1 {
		t.Errorf("what came a minute later stands for %d, all for %d, want 1 and %d", last.Weight, total, burst+1)
	}
	for name, test := range map[string]struct {
		tap  *Tap
		want int
	}{"before it": {early, 2 * (burst + 1)}, "after it": {late, 2}} {
		lost := test.tap.Lost()
		got := lost.Sampled
		for range len(test.tap.Flows()) {
			got += (<-test.tap.Flows()).Weight
		}
		if got != test.want || lost.Unread != 0 {
			t.Errorf("a tap from %s knows of %d and %d unread, want %d", name, got, lost.Unread, test.want)
		}
	}
}

func tapOf(t *testing.T, l *Log) *Tap {
	t.Helper()
	tap, err := l.Tap(nil)
	if err != nil {
		t.Fatal(err)
	}
	return tap
}

// From its second second on, a sample is spread over the whole of it.
func TestSampleIsSpread(t *testing.T) {
	var s sampler
	var lastKept int
	for second := range 3 {
		for i := range 10_000 {
			at := noon.Add(time.Duration(second)*time.Second + time.Duration(i)*100*time.Microsecond)
			if weight, _ := s.admit(at); weight > 0 {
				lastKept = i
			}
		}
		if second > 0 && lastKept < 9_900 {
			t.Errorf("second %d: the last that was kept is %d of 10000", second, lastKept)
		}
	}
}

// What callers said takes no more than its share and is shown as text.
func TestWordsAreBounded(t *testing.T) {
	l := New(1, noon)
	long := strings.Repeat("ü", 1000)
	l.Add(event(noon, func(e *Event) {
		e.Kind, e.Protocol, e.Method, e.Host, e.Path, e.Err = Requested, "http", long, "a\xff\xfeb", "/"+long, errors.New(long)
	}))
	f := l.Flows(nil, time.Time{}, 1)[0]
	for name, field := range map[string]struct {
		text string
		most int
	}{"method": {f.HTTP.Method, maxMethod}, "path": {f.HTTP.Path, maxPath}, "error": {f.Error, maxProblem}} {
		if len(field.text) > field.most || len(field.text) < field.most-4 || !utf8.ValidString(field.text) || !strings.HasSuffix(field.text, "…") {
			t.Errorf("%s: %d bytes %q, want up to %d of whole characters", name, len(field.text), field.text, field.most)
		}
	}
	if !utf8.ValidString(f.HTTP.Host) || !strings.HasPrefix(f.HTTP.Host, "a") {
		t.Errorf("host %q", f.HTTP.Host)
	}
}

func TestFilter(t *testing.T) {
	request := event(noon, func(e *Event) { e.Kind = Requested })
	denied := event(noon, func(e *Event) {
		e.Outcome, e.Security, e.Inbound = "denied", "plain", false
		e.Source.Workload, e.Source.Identity = nil, model.Identity{}
	})
	for _, test := range []struct {
		query           string
		request, denied bool
	}{
		{"", true, true},
		{"from=shop/web-1", true, false},
		{"from=shop/web", true, false}, // its owner
		{"from=shop/we", false, false},
		{"from=shop/", true, false},
		{"from=198.18.1.1", true, true},
		{"from=::ffff:198.18.1.1", true, true},
		{"from=shop/api-1", false, false},
		{"to=shop/api", true, true},
		{"either=shop/web-1", true, false},
		{"either=shop/api-1", true, true},
		{"port=8080", true, true},
		{"port=80", false, false},
		{"outcome=denied,failed", false, true},
		{"security=mtls", true, false},
		{"kind=requests", true, false},
		{"kind=connections", false, true},
		{"direction=inbound", true, false},
		{"identity=spiffe://cluster.local/ns/shop/sa/web-1", true, false},
		{"identity=ns/shop/sa/web-1", true, false},
		{"identity=sa/web", false, false},
	} {
		query, err := url.ParseQuery(test.query)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ParseFilter(query)
		if err != nil {
			t.Errorf("%s: %v", test.query, err)
			continue
		}
		_, first := Show(request, f)
		_, second := Show(denied, f)
		if first != test.request || second != test.denied {
			t.Errorf("%s takes %v, %v; want %v, %v", test.query, first, second, test.request, test.denied)
		}
	}
	for _, bad := range []string{"port=0", "port=x", "port=70000", "outcome=good", "security=mtls,none", "kind=all", "direction=up", "from=web", "to=/x"} {
		query, _ := url.ParseQuery(bad)
		if _, err := ParseFilter(query); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestTap(t *testing.T) {
	l := New(16, noon)
	if l.Takes(Opened) || !l.Takes(Ended) {
		t.Error("without a tap openings are of no interest, and ends are")
	}
	f := &Filter{Outcomes: []string{"denied"}}
	tap, err := l.Tap(f)
	if err != nil {
		t.Fatal(err)
	}
	all, err := l.Tap(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !l.Takes(Opened) {
		t.Error("a tap shows no openings")
	}
	l.Add(event(noon, func(e *Event) { e.Kind = Opened }))
	l.Add(event(noon))
	l.Add(event(noon, outcome("denied")))
	if got := (<-tap.Flows()).Outcome; got != "denied" || len(tap.Flows()) != 0 {
		t.Errorf("the tap of denials shows %q and %d more", got, len(tap.Flows()))
	}
	var kinds []string
	for range 3 {
		kinds = append(kinds, (<-all.Flows()).Kind)
	}
	if !slices.Equal(kinds, []string{"opened", "ended", "ended"}) {
		t.Errorf("the tap of all shows %v", kinds)
	}
	if remembered := l.Flows(nil, time.Time{}, 9); len(remembered) != 2 {
		t.Errorf("%d flows are remembered, want the two ends", len(remembered))
	}
	all.Close()
	l.Add(event(noon))
	if len(all.Flows()) != 0 {
		t.Error("a closed tap gets flows")
	}
}

// Nothing waits for a tap that is not read, which is told what it lost.
func TestSlowTap(t *testing.T) {
	l := New(16, noon)
	tap := tapOf(t, l)
	const n = tapBuffer + 1000
	for i := range n {
		l.Add(event(noon.Add(time.Duration(i) * time.Second)))
	}
	if len(tap.Flows()) != tapBuffer || tap.Lost() != (Lost{Unread: n - tapBuffer}) || tap.Lost() != (Lost{}) {
		t.Errorf("%d wait, %+v lost; want %d, %d", len(tap.Flows()), tap.Lost(), tapBuffer, n-tapBuffer)
	}
	for range maxTaps - 1 {
		if _, err := l.Tap(nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Tap(nil); !errors.Is(err, ErrTaps) {
		t.Errorf("one tap too many: %v", err)
	}
	tap.Close()
	if _, err := l.Tap(nil); err != nil {
		t.Errorf("in the place of a closed one: %v", err)
	}
}

func TestWhy(t *testing.T) {
	tcp := func(w *model.Workload) { w.Protocol = model.ProtocolTCP }
	for _, test := range []struct {
		want     string
		security string
		inbound  bool
		peer     *model.Workload // the other end than this node's pod
	}{
		{"", "mtls", true, nil},
		{"", "local", false, nil},
		{WhyServerSkips, "skipped", false, pod("shop", "db")},
		{WhyServerOutside, "passthrough", false, nil},
		{WhyServerOutside, "plain", false, nil},
		{WhyServerNotInMesh, "plain", false, pod("shop", "db", tcp)},
		{WhyServerHost, "plain", false, pod("shop", "db", tcp, func(w *model.Workload) { w.HostNetwork = true })},
		{WhyServerAsksForTCP, "plain", false, pod("shop", "db")},
		{WhyClientOutside, "plain", true, nil},
		{WhyClientNotInMesh, "plain", true, pod("shop", "old", tcp)},
		{WhyClientSkips, "plain", true, pod("shop", "old", func(w *model.Workload) { w.SkipOutbound = model.PortSet{{First: 8000, Last: 9000}} })},
		{WhyClientSkips, "plain", true, pod("shop", "old", func(w *model.Workload) {
			w.SkipOutboundCIDRs = []netip.Prefix{netip.MustParsePrefix("198.18.2.0/24")}
		})},
		{WhyClientNotCaught, "plain", true, pod("shop", "old")},
	} {
		e := event(noon, func(e *Event) {
			e.Security, e.Inbound = test.security, test.inbound
			if test.inbound {
				e.Source.Workload = test.peer
			} else {
				e.Destination.Workload = test.peer
			}
		})
		if got := why(e); got != test.want {
			t.Errorf("%s, inbound %v, %v: %q, want %q", test.security, test.inbound, test.peer, got, test.want)
		}
	}
}

func TestPairs(t *testing.T) {
	l := New(16, noon)
	l.Add(event(noon))
	l.Add(event(noon, outcome("denied"), func(e *Event) { e.Policy, e.Matched = "shop/strict", true }))
	l.Add(event(noon, outcome("denied"), func(e *Event) { e.Policy = "shop/closest" }))
	l.Add(event(noon, outcome("failed")))
	l.Add(event(noon, func(e *Event) { e.Kind, e.Sent = Requested, 1000 }))
	l.Add(event(noon, func(e *Event) { e.Kind = Opened }))
	pairs := l.Pairs(slices.Values([]Event{*event(noon, func(e *Event) { e.Kind = Live })}))
	if len(pairs) != 1 {
		t.Fatalf("%d pairs: %+v", len(pairs), pairs)
	}
	p := pairs[0]
	if p.Source != (Party{"shop", "web"}) || p.Destination != (Party{"shop", "api"}) {
		t.Errorf("between %v and %v", p.Source, p.Destination)
	}
	if p.Connections != 1 || p.Live != 1 || p.Requests != 1 || p.Denied != 2 || p.Failed != 1 || p.Sent != 50 || p.Received != 100 {
		t.Errorf("counts %+v", p.Counts)
	}
	if p.Latency[bucket(time.Millisecond)] != 1 || p.Latency[bucket(time.Second)] != 1 {
		t.Errorf("latency %v", p.Latency)
	}
	if again := l.Pairs(slices.Values([]Event{}))[0]; again.Live != 0 || again.Sent != 40 {
		t.Errorf("a live connection was counted for good: %+v", again.Counts)
	}
	since, matched := l.Matched()
	if len(matched) != 1 || matched["shop/strict"] != noon || since != noon {
		t.Errorf("policies that decided: %v since %v", matched, since)
	}
}

// A full table counts new pairs among the others, until old ones are idle;
// nothing is lost from the sums.
func TestPairsAreBounded(t *testing.T) {
	const limit = 4
	table := newPairTable(limit)
	count := func(from string, at time.Time) {
		table.count(event(at, func(e *Event) { e.Source.Workload = pod("shop", from) }))
	}
	for i := range 10 {
		count(fmt.Sprint("a", string(rune('a'+i))), noon)
	}
	if len(table.pairs) != limit+1 {
		t.Errorf("%d pairs, want %d and the others", len(table.pairs), limit)
	}
	count("new", noon.Add(2*pairIdle))
	found := false
	var sum uint64
	for key, p := range table.pairs {
		found = found || key.Source.Name == "new"
		sum += p.Connections
	}
	if !found || len(table.pairs) != 2 || sum != 11 {
		t.Errorf("after the sweep: %d pairs of %d connections, the new one among them: %v", len(table.pairs), sum, found)
	}
}

func TestBuckets(t *testing.T) {
	for d, want := range map[time.Duration]int{
		-1: 0, 0: 0, 63 * time.Microsecond: 0, 64 * time.Microsecond: 1, 127 * time.Microsecond: 1, 128 * time.Microsecond: 2,
		time.Hour: LatencyBuckets - 1,
	} {
		if got := bucket(d); got != want {
			t.Errorf("%v is in bucket %d, want %d", d, got, want)
		}
	}
}

// What is not kept allocates nothing.
func TestNoAllocations(t *testing.T) {
	l := New(DefaultSize, noon)
	e := event(noon)
	for range 2 * perSecond {
		l.Add(e)
	}
	if n := testing.AllocsPerRun(1000, func() { l.Add(e) }); n != 0 {
		t.Errorf("%v allocations for a flow that is not kept", n)
	}
}

// BenchmarkAdd is the cost of a flow at 10,000 a second, while somebody taps;
// %core is what such a rate takes of one core.
func BenchmarkAdd(b *testing.B) {
	const rate = 10_000
	l := New(DefaultSize, noon)
	tap, err := l.Tap(&Filter{Identity: "ns/none/sa/none"})
	if err != nil {
		b.Fatal(err)
	}
	defer tap.Close()
	events := []*Event{event(noon), event(noon, outcome("denied")), event(noon, func(e *Event) { e.Kind = Requested })}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e := events[i%len(events)]
		e.Time = noon.Add(time.Duration(i) * time.Second / rate)
		l.Add(e)
		i++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)*rate/1e9*100, "%core")
}
