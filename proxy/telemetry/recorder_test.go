package telemetry

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	mesh "github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

	plain := w.record()
	plain.Security, plain.Source.Identity, plain.Destination.Identity = Plain, mesh.Identity{}, mesh.Identity{}
	w.Opened(plain)
	w.want("istio_tcp_connections_opened_total", 1, "reporter=destination", "connection_security_policy=unknown",
		"source_workload=web-deploy", "source_principal=unknown", "destination_principal=spiffe://cluster.local/ns/data/sa/db")
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

func TestStateGauges(t *testing.T) {
	var held []Certificate
	w := newWorld(t, func(o *Options) {
		o.Generation = func() uint64 { return 7 }
		o.PoolConnections = func() int { return 3 }
		o.Certificates = func() []Certificate { return held }
	})
	held = []Certificate{{Identity: web.Identity(), NotAfter: w.now.Add(90 * time.Second), Renewal: w.now.Add(time.Second), Roots: w.now.Add(time.Hour)}, {Identity: db.Identity(), Failures: 3}}
	w.want("tacit_snapshot_generation", 7)
	w.want("tacit_pool_connections", 3)
	w.want("tacit_certificate_expiry_seconds", 90, "identity=spiffe://cluster.local/ns/shop/sa/web")
	w.want("istio_cert_expiry_seconds", 90, "identity=spiffe://cluster.local/ns/shop/sa/web")
	w.want("tacit_certificate_expiry_timestamp_seconds", float64(held[0].NotAfter.Unix()), "identity=spiffe://cluster.local/ns/shop/sa/web")
	w.want("tacit_certificate_renewal_timestamp_seconds", float64(held[0].Renewal.Unix()), "identity=spiffe://cluster.local/ns/shop/sa/web")
	w.want("tacit_roots_expiry_timestamp_seconds", float64(held[0].Roots.Unix()), "identity=spiffe://cluster.local/ns/shop/sa/web")
	w.want("tacit_time_seconds", float64(w.now.Unix()))
	w.want("tacit_certificate_failures_total", 3, "identity="+db.Identity().String())
	w.now = w.now.Add(100 * time.Second)
	w.want("tacit_certificate_expiry_seconds", -10)
	held = held[1:]
	if n := w.count("tacit_certificate_expiry_seconds"); n != 0 {
		t.Errorf("%d series of identities that are not held", n)
	}
}

// Where policies decide about a connection, they are counted, whichever way it
// went; and the first denial is an increase of what was there before.
func TestPoliciesOfConnections(t *testing.T) {
	w := newWorld(t, nil)
	w.want("tacit_denials_total", 0, "direction=inbound", "reason=denied")
	for _, outcome := range []Outcome{OK, Denied} {
		for _, d := range []Direction{Inbound, Outbound} {
			r := w.record()
			r.Direction, r.Outcome, r.Policy, r.Reason, r.DryRun = d, outcome, "data/p", "denied", "data/later"
			w.Closed(r)
		}
	}
	for _, decision := range []string{"allow", "deny"} {
		w.want("tacit_policy_decisions_total", 1, "decision="+decision, "policy=data/p")
		w.want("tacit_policy_decisions_total", 1, "decision=dry_run_"+decision, "policy=data/later")
	}
	w.want("tacit_dry_run_total", 2)
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

// A policy that only came closest to allowing has decided nothing.
func TestClosestDecidesNothing(t *testing.T) {
	w := newWorld(t, nil)
	for _, closest := range []bool{true, false} {
		r := w.record()
		r.Outcome, r.Policy, r.Closest = Denied, "shop/p", closest
		w.Closed(r)
		w.Requested(&Request{Connection: r, Denied: true, Policy: "shop/q", Closest: closest})
	}
	w.want("tacit_policy_decisions_total", 1, "decision=deny", "policy=shop/p")
	w.want("tacit_policy_decisions_total", 1, "decision=deny", "policy=shop/q")
}

// By its names Istio's dashboard of ztunnel finds what it shows, where the proxy
// is in its place and nowhere else.
func TestNamesOfZtunnel(t *testing.T) {
	const url = "type.googleapis.com/istio.workload.Address"
	w := newWorld(t, func(o *Options) {
		o.Ztunnel = func() Ztunnel {
			return Ztunnel{Version: "v1", Pods: 3, Ended: map[string]uint64{"Error": 0, "Reconnect": 2}, Received: map[string]Received{url: {5, 600}}}
		}
	})
	w.want("istio_build", 1, "component=ztunnel", "tag=v1")
	w.want("workload_manager_active_proxy_count", 3)
	w.want("istio_xds_connection_terminations_total", 2, "reason=Reconnect")
	w.want("istio_xds_connection_terminations_total", 0, "reason=Error")
	w.want("istio_xds_message_total", 5, "url="+url)
	w.want("istio_xds_message_bytes_total", 600, "url="+url)
	if other := newWorld(t, nil); other.count("istio_build")+other.count("workload_manager_active_proxy_count") > 0 {
		t.Error("elsewhere there are such series, too")
	}
}
