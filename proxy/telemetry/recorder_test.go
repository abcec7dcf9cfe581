package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	mesh "github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a recorder with its log, its clock and the mesh that it believes in.
type world struct {
	t *testing.T
	*Recorder
	log       *bytes.Buffer
	now       time.Time
	workloads []*mesh.Workload
	options   Options
}

func newWorld(t *testing.T, change func(*Options)) *world {
	w := &world{t: t, log: &bytes.Buffer{}, now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	w.workloads = []*mesh.Workload{web, db}
	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg", LevelKey: "level", EncodeLevel: zapcore.LowercaseLevelEncoder})
	w.options = Options{
		Log:       zap.New(zapcore.NewCore(encoder, zapcore.AddSync(w.log), zapcore.DebugLevel)),
		Now:       func() time.Time { return w.now },
		Workloads: func() []*mesh.Workload { return w.workloads },
	}
	if change != nil {
		change(&w.options)
	}
	w.Recorder = New(w.options)
	return w
}

// scrape reads the metrics over HTTP: name{labels} -> value.
func (w *world) scrape() map[string]float64 {
	w.t.Helper()
	server := httptest.NewServer(w.Handler())
	defer server.Close()
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	found := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%s", l.GetName(), l.GetValue()))
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			found[name+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return found
}

// want is a part of a series' labels and its value.
func (w *world) want(name string, value float64, labels ...string) {
	w.t.Helper()
	var sum float64
	n := 0
	for key, got := range w.scrape() {
		if !strings.HasPrefix(key, name+"{") {
			continue
		}
		matches := true
		for _, l := range labels {
			matches = matches && strings.Contains(strings.NewReplacer("{", ",", "}", ",").Replace(key), ","+l+",")
		}
		if matches {
			sum += got
			n++
		}
	}
	if n != 1 || sum != value {
		w.t.Errorf("%s%v: %d series with the sum %v, want one with %v", name, labels, n, sum, value)
	}
}

// count is how many series a name has.
func (w *world) count(name string) int {
	n := 0
	for key := range w.scrape() {
		if strings.HasPrefix(key, name+"{") {
			n++
		}
	}
	return n
}

func (w *world) lines() []string {
	text := strings.TrimSuffix(w.log.String(), "\n")
	w.log.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

var (
	web = &mesh.Workload{UID: "c//Pod/shop/web-1", Name: "web-1", Namespace: "shop", ServiceAccount: "web", TrustDomain: "cluster.local",
		ClusterID: "c", CanonicalName: "web", CanonicalRevision: "v2", WorkloadName: "web-deploy"}
	db = &mesh.Workload{UID: "c//Pod/data/db-0", Name: "db-0", Namespace: "data", ServiceAccount: "db", TrustDomain: "cluster.local",
		ClusterID: "c", CanonicalName: "postgres", CanonicalRevision: "latest", WorkloadName: "db"}
	dbService = &mesh.Service{Name: "db", Namespace: "data", Hostname: "db.data.svc.cluster.local"}
)

const id = "0123456789abcdef0123456789abcdef"

func (w *world) record() *Record {
	return &Record{
		ID: id, Direction: Inbound, Security: MTLS, Start: w.now,
		Source:      End{Addr: netip.MustParseAddrPort("10.0.0.1:4000"), Workload: web, Identity: web.Identity()},
		Destination: End{Addr: netip.MustParseAddrPort("10.0.0.2:5432"), Workload: db, Identity: db.Identity()},
		Service:     dbService,
	}
}

func TestStandardLabels(t *testing.T) {
	w := newWorld(t, nil)
	r := w.record()
	w.Opened(r)
	w.want("istio_tcp_connections_opened_total", 1,
		"reporter=destination", "request_protocol=tcp", "response_flags=-", "connection_security_policy=mutual_tls",
		"source_workload=web-deploy", "source_workload_namespace=shop", "source_canonical_service=web",
		"source_canonical_revision=v2", "source_app=web", "source_version=v2", "source_cluster=c",
		"source_principal=spiffe://cluster.local/ns/shop/sa/web",
		"destination_workload=db", "destination_workload_namespace=data", "destination_canonical_service=postgres",
		"destination_canonical_revision=latest", "destination_app=postgres", "destination_version=latest", "destination_cluster=c",
		"destination_principal=spiffe://cluster.local/ns/data/sa/db",
		"destination_service=db.data.svc.cluster.local", "destination_service_name=db", "destination_service_namespace=data")
	w.want("tacit_connections_live", 1, "direction=inbound")

	w.Progress(r, 100, 1000)
	w.Progress(r, 100, 1500)
	w.want("istio_tcp_received_bytes_total", 100) // what the client sent
	w.want("istio_tcp_sent_bytes_total", 1500)
	r.Sent, r.Received = 120, 2000
	r.Phases[PhaseAuthorize] = time.Millisecond
	w.now = w.now.Add(time.Second)
	w.Closed(r)
	w.Closed(r)
	w.Progress(r, 120, 2000)
	w.want("istio_tcp_received_bytes_total", 120)
	w.want("istio_tcp_sent_bytes_total", 2000)
	w.want("istio_tcp_connections_closed_total", 1, "response_flags=-")
	w.want("tacit_connections_live", 0, "direction=inbound")
	w.want("tacit_connections_total", 1, "direction=inbound", "security=mtls")
	w.want("tacit_connection_phase_seconds", 1, "direction=inbound", "phase=authorize")
	w.want("tacit_connection_phase_seconds", 0, "direction=inbound", "phase=dial")
	if n := len(w.lines()); n != 1 {
		t.Errorf("%d lines for one connection", n)
	}
}

func TestUnknownEnds(t *testing.T) {
	w := newWorld(t, nil)
	r := &Record{Direction: Outbound, Security: Passthrough, Start: w.now,
		Source:      End{Addr: netip.MustParseAddrPort("10.0.0.1:4000"), Name: "web-1", Namespace: "shop"},
		Destination: End{Addr: netip.MustParseAddrPort("[2001:db8::1]:443")}}
	w.Opened(r)
	w.want("istio_tcp_connections_opened_total", 1, "reporter=source", "connection_security_policy=unknown",
		"source_workload=unknown", "source_workload_namespace=shop", "source_principal=unknown",
		"destination_workload=unknown", "destination_service=unknown", "destination_principal=unknown")
}

func TestFlagsOfTheEnd(t *testing.T) {
	w := newWorld(t, nil)
	denied := w.record()
	denied.Reason = "not_allowed"
	w.Denied(denied) // before it was opened
	w.want("istio_tcp_connections_opened_total", 1, "response_flags=DENY")
	w.want("istio_tcp_connections_closed_total", 1, "response_flags=DENY")
	w.want("tacit_denials_total", 1, "direction=inbound", "reason=not_allowed")

	failed := w.record()
	failed.Outcome = Failed
	w.Closed(failed)
	w.want("istio_tcp_connections_closed_total", 1, "response_flags=CONNECT")

	cut := w.record() // while it lived
	w.Opened(cut)
	cut.Sent = 7
	cut.Reason = "denied"
	w.Denied(cut)
	w.want("istio_tcp_connections_opened_total", 1, "response_flags=-")
	w.want("istio_tcp_connections_closed_total", 0, "response_flags=-")
	w.want("istio_tcp_connections_closed_total", 2, "response_flags=DENY")
	w.want("istio_tcp_received_bytes_total", 7, "response_flags=-")
	w.want("tacit_connections_live", 0, "direction=inbound")
	w.want("tacit_connections_total", 3, "direction=inbound", "security=mtls")
	w.want("tacit_denials_total", 1, "direction=inbound", "reason=denied")
}

func TestGoldenLines(t *testing.T) {
	cases := map[string]struct {
		change func(*Record)
		want   string
	}{
		"closed": {func(r *Record) {
			r.Sent, r.Received = 10, 20
			r.Phases[PhaseAuthorize], r.Phases[PhaseDial] = 1500*time.Nanosecond, 250*time.Microsecond
			r.Policy, r.Reason, r.DryRun = "data/allow-web", "allowed", "data/later"
		}, `{"level":"info","msg":"connection closed","id":"` + id + `","direction":"inbound","security":"mtls","outcome":"ok",` +
			`"src.addr":"10.0.0.1:4000","src.workload":"web-1","src.namespace":"shop","src.identity":"spiffe://cluster.local/ns/shop/sa/web",` +
			`"dst.addr":"10.0.0.2:5432","dst.workload":"db-0","dst.namespace":"data","dst.identity":"spiffe://cluster.local/ns/data/sa/db",` +
			`"dst.service":"db.data.svc.cluster.local","bytes_sent":10,"bytes_recv":20,"duration_ms":1234,` +
			`"phases_us":{"authorize":1.5,"dial":250},"policy":"data/allow-web","reason":"allowed","dry_run":"data/later"}`},
		"denied": {func(r *Record) {
			r.Outcome, r.Policy, r.Reason, r.Attribute = Denied, "data/allow-web", "not_allowed", "principals"
			r.Service, r.Source.Workload, r.Source.Identity = nil, nil, mesh.Identity{}
			r.Security = Plain
		}, `{"level":"warn","msg":"connection denied","id":"` + id + `","direction":"inbound","security":"plain","outcome":"denied",` +
			`"src.addr":"10.0.0.1:4000",` +
			`"dst.addr":"10.0.0.2:5432","dst.workload":"db-0","dst.namespace":"data","dst.identity":"spiffe://cluster.local/ns/data/sa/db",` +
			`"bytes_sent":0,"bytes_recv":0,"duration_ms":1234,"phases_us":{},` +
			`"policy":"data/allow-web","reason":"not_allowed","attribute":"principals"}`},
		"failed": {func(r *Record) {
			r.Outcome, r.Direction, r.Err, r.ID = Failed, Outbound, errors.New("dial: refused"), "\n{forged}"
			r.Destination, r.Service = End{Addr: r.Destination.Addr, Name: "db-0", Namespace: "data"}, nil
		}, `{"level":"warn","msg":"connection failed","direction":"outbound","security":"mtls","outcome":"failed",` +
			`"src.addr":"10.0.0.1:4000","src.workload":"web-1","src.namespace":"shop","src.identity":"spiffe://cluster.local/ns/shop/sa/web",` +
			`"dst.addr":"10.0.0.2:5432","dst.workload":"db-0","dst.namespace":"data",` +
			`"bytes_sent":0,"bytes_recv":0,"duration_ms":1234,"phases_us":{},"error":"dial: refused"}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.record()
			c.change(r)
			w.now = w.now.Add(1234 * time.Millisecond)
			w.Closed(r)
			if got := w.lines(); len(got) != 1 || got[0] != c.want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

func TestSeriesOfGoneWorkloadsDisappear(t *testing.T) {
	w := newWorld(t, nil)
	old, live := w.record(), w.record()
	w.Opened(old)
	w.Closed(old)
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
	if n := w.count("istio_tcp_connections_opened_total"); n != 2 {
		t.Fatalf("%d series of workloads that are there, want 2", n)
	}
	w.workloads = []*mesh.Workload{web} // the database goes
	minutes(9)
	if n := w.count("istio_tcp_connections_opened_total"); n != 2 {
		t.Errorf("%d series after 9 minutes, want 2", n)
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
	if len(lines) != floodKinds+floodAllowed {
		t.Errorf("%d lines, want %d", len(lines), floodKinds+floodAllowed)
	}
	if len(lines[0]) > 800 {
		t.Errorf("a line of %d bytes", len(lines[0]))
	}
	w.summarize()
	if got := w.lines(); len(got) != 1 || !strings.Contains(got[0], fmt.Sprintf(`"reason":"various","suppressed":%d`, 20000-len(lines))) {
		t.Errorf("summary %q", got)
	}
}

func TestStateGauges(t *testing.T) {
	var ends map[mesh.Identity]time.Time
	w := newWorld(t, func(o *Options) {
		o.Generation = func() uint64 { return 7 }
		o.PoolConnections = func() int { return 3 }
		o.Certificates = func() iter.Seq2[mesh.Identity, time.Time] { return maps.All(ends) }
	})
	ends = map[mesh.Identity]time.Time{web.Identity(): w.now.Add(90 * time.Second), db.Identity(): {}}
	w.want("tacit_snapshot_generation", 7)
	w.want("tacit_pool_connections", 3)
	w.want("tacit_certificate_expiry_seconds", 90, "identity=spiffe://cluster.local/ns/shop/sa/web")
	w.now = w.now.Add(100 * time.Second)
	w.want("tacit_certificate_expiry_seconds", -10)
	delete(ends, web.Identity())
	if n := w.count("tacit_certificate_expiry_seconds"); n != 0 {
		t.Errorf("%d series of identities that are not held", n)
	}
}

// Progress comes from another goroutine than the end, and scrapes at any time.
func TestConcurrentUse(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Log = nil })
	var working sync.WaitGroup
	const connections, bytes = 20, 1000
	for range connections {
		r := w.record()
		w.Opened(r)
		var relaying sync.WaitGroup
		relaying.Go(func() {
			for n := range int64(bytes) {
				w.Progress(r, n, 2*n)
			}
		})
		working.Go(func() {
			c := w.record()
			c.Outcome = Failed
			w.Closed(c)
			w.sweep()
			r.Sent, r.Received = bytes, 2*bytes
			w.Closed(r)
			relaying.Wait()
		})
	}
	w.scrape()
	working.Wait()
	w.want("istio_tcp_received_bytes_total", connections*bytes, "response_flags=-")
	w.want("istio_tcp_sent_bytes_total", connections*2*bytes, "response_flags=-")
	w.want("tacit_connections_live", 0, "direction=inbound")
}

func TestRunEndsWithASummary(t *testing.T) {
	w := newWorld(t, nil)
	for range floodAllowed + 1 {
		w.Denied(w.record())
	}
	w.lines()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
	if got := w.lines(); len(got) != 1 || !strings.Contains(got[0], `"suppressed":1`) {
		t.Errorf("last words %q", got)
	}
}

// The budget of a connection: without its log line it leaves no garbage.
func TestAllocations(t *testing.T) {
	silent := New(Options{})
	w := newWorld(t, nil)
	r := w.record()
	connection := func(rec *Recorder) func() {
		return func() {
			r.ended, r.series = false, nil
			rec.Opened(r)
			rec.Progress(r, 1, 1)
			r.Phases[PhaseDial] = time.Millisecond
			rec.Closed(r)
		}
	}
	if n := testing.AllocsPerRun(1000, connection(silent)); n != 0 {
		t.Errorf("%v allocations without a log, want none", n)
	}
	logged := New(Options{Log: zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zapcore.InfoLevel))})
	if n := testing.AllocsPerRun(1000, connection(logged)); n > 12 {
		t.Errorf("%v allocations with a log line, want 12 at most", n)
	}
}

func BenchmarkConnection(b *testing.B) {
	logger := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zapcore.InfoLevel))
	for name, rec := range map[string]*Recorder{"metrics": New(Options{}), "metrics and log": New(Options{Log: logger})} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			w := &world{now: time.Now()}
			r := w.record()
			for b.Loop() {
				r.ended, r.series = false, nil
				rec.Opened(r)
				rec.Closed(r)
			}
		})
	}
}
