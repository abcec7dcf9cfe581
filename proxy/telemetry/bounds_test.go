package telemetry

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	mesh "github.com/tacit-mesh/tacit/xds/model"
)

func TestSeriesOfGoneWorkloadsDisappear(t *testing.T) {
	w := newWorld(t, nil)
	old, denied, live := w.record(), w.record(), w.record()
	w.Opened(old)
	w.Closed(old)
	w.Denied(denied)
	live.Source = End{Addr: live.Source.Addr} // from outside the mesh
	w.Opened(live)
	minutes := func(n int) {
		for range n {
			w.sweep()
			w.now = w.now.Add(time.Minute)
		}
		w.sweep()
	}
	minutes(60)
	if n := w.count("istio_tcp_connections_opened_total"); n != 3 {
		t.Fatalf("%d series of workloads that are there, want 3", n)
	}
	w.workloads = []*mesh.Workload{web} // the database goes
	minutes(9)
	if n := w.count("istio_tcp_connections_opened_total"); n != 3 {
		t.Errorf("%d series after 9 minutes, want 3", n)
	}
	minutes(1)
	w.want("istio_tcp_connections_opened_total", 1, "source_workload=unknown") // its connection still lives
	w.Closed(live)
	minutes(9)
	w.want("istio_tcp_connections_closed_total", 1)
	w.workloads = []*mesh.Workload{web, db} // back in time
	w.sweep()
	w.workloads = []*mesh.Workload{web}
	minutes(9)
	w.want("istio_tcp_connections_closed_total", 1)
	minutes(1)
	if n := w.count("istio_tcp_connections_closed_total"); n != 0 {
		t.Errorf("%d series left", n)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	const limit = 50
	w := newWorld(t, func(o *Options) { o.MaxSeries = limit })
	for i := range 10 * limit {
		r := w.record()
		source := *web
		source.WorkloadName = fmt.Sprint("w", i)
		w.workloads = append(w.workloads, &source)
		r.Source.Workload = &source
		w.Opened(r)
		r.Sent = 1
		w.Closed(r)
	}
	if n := w.count("istio_tcp_connections_opened_total"); n != limit+1 {
		t.Errorf("%d series, want %d and one for the rest", n, limit)
	}
	w.want("istio_tcp_connections_opened_total", 9*limit, "source_workload=other", "reporter=destination")
	w.want("istio_tcp_received_bytes_total", 9*limit, "source_workload=other")
	w.now = w.now.Add(time.Hour)
	w.sweep() // all are still in the mesh, but idle
	w.Opened(w.record())
	w.want("istio_tcp_connections_opened_total", 1, "source_workload=web-deploy")
}

func TestReasonsAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	peer := netip.MustParseAddrPort("10.0.0.9:1")
	for i := range 200 {
		w.PeerCut(Inbound, peer, peer, fmt.Sprint("cause_", i), nil)
		w.HandshakeFailed(Inbound, peer, peer, "bad \xff label", nil)
		w.HandshakeFailed(Outbound, peer, peer, "expired", nil)
	}
	if n := w.count("tacit_peer_cuts_total"); n != maxLabelValues+1 {
		t.Errorf("%d causes, want %d and other", n, maxLabelValues)
	}
	w.want("tacit_tls_handshake_failures_total", 200, "direction=inbound", "reason=other")
	w.want("tacit_tls_handshake_failures_total", 200, "direction=outbound", "reason=expired")
}

func TestFloodBecomesOneLine(t *testing.T) {
	w := newWorld(t, nil)
	deny := func(n int, port uint16) {
		for i := range n {
			r := w.record()
			r.Source.Addr = netip.AddrPortFrom(r.Source.Addr.Addr(), uint16(i))
			r.Destination.Addr = netip.AddrPortFrom(r.Destination.Addr.Addr(), port)
			r.Policy, r.Reason = "data/p", "denied"
			w.Denied(r)
		}
	}
	deny(1000, 5432)
	if n := len(w.lines()); n != floodAllowed {
		t.Errorf("%d lines of the same denial", n)
	}
	deny(1, 5433)
	if n := len(w.lines()); n != 1 {
		t.Errorf("%d lines of another denial, want 1", n)
	}
	for range 1000 { // what ends well is always told
		w.Closed(w.record())
	}
	if n := len(w.lines()); n != 1000 {
		t.Errorf("%d lines of 1000 ends", n)
	}
	w.summarize()
	want := `{"level":"warn","msg":"connection denied, repeated","direction":"inbound","src.ip":"10.0.0.1","dst.addr":"10.0.0.2:5432",` +
		`"policy":"data/p","reason":"denied","suppressed":995}`
	if got := w.lines(); len(got) != 1 || got[0] != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	w.want("tacit_log_lines_suppressed_total", 995)
	w.want("tacit_denials_total", 1001, "reason=denied")
	deny(1, 5432) // a new interval
	if n := len(w.lines()); n != 1 {
		t.Errorf("%d lines in the next interval, want 1", n)
	}
}

func TestFloodOfKindsIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	for port := range 20000 {
		destination := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(port))
		w.HandshakeFailed(Inbound, netip.MustParseAddrPort("10.0.0.9:1"), destination, "not_tls", errors.New(strings.Repeat("x", 5000)))
	}
	if n := len(w.flood.kinds); n > floodKinds+1 {
		t.Errorf("%d kinds kept", n)
	}
	lines := w.lines()
	if len(lines) != floodKinds/2+floodAllowed {
		t.Errorf("%d lines of one source, want %d", len(lines), floodKinds/2+floodAllowed)
	}
	if len(lines[0]) > 800 {
		t.Errorf("a line of %d bytes", len(lines[0]))
	}
	w.summarize()
	if got := w.lines(); len(got) != 1 || !strings.Contains(got[0], fmt.Sprintf(`"reason":"various","suppressed":%d`, 20000-len(lines))) {
		t.Errorf("summary %q", got)
	}
	source := netip.MustParseAddr("10.0.0.9")
	for port := range uint16(20000) {
		source = source.Next()
		w.HandshakeFailed(Inbound, netip.AddrPortFrom(source, 1), netip.AddrPortFrom(source, port), "not_tls", errors.New("x"))
	}
	if n := len(w.flood.kinds); n > 2*floodKinds+1 {
		t.Errorf("%d kinds of 20000 sources kept", n)
	}
}
