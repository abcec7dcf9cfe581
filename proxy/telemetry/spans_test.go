package telemetry

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
	"github.com/tacit-mesh/tacit/proxy/tracing"
)

// Spans say what the log says, each on behalf of the local pod; what has none is
// not sent.
func TestSpans(t *testing.T) {
	collector, url := otlptest.Listen(t, nil)
	e, err := otlp.New(otlp.Config{Endpoint: url, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *Options) { o.Spans, o.Node = e, "node-1" })
	sampler := tracing.NewSampler(1)
	c := w.record()
	w.Closed(w.record()) // without a span
	w.Requested(&Request{Connection: c, Method: "GET", Path: "/none", Status: 200, GRPCStatus: -1})

	c.ID = tracing.NewTrace()
	c.Span = sampler.Root(c.ID)
	c.Outcome, c.Reason, c.Err = Reset, "reset_by_peer", errors.New("connection reset")
	c.Phases[PhaseDial] = time.Millisecond
	parent := tracing.Context{Trace: tracing.NewTrace(), Span: tracing.NewSpan(), Sampled: true, State: "congo=1"}
	w.Requested(&Request{
		Connection: c, Version: "HTTP/1.1", Start: w.now.Add(-time.Second), Method: "GET", Host: "db.shop:8080", Path: "/a", Status: 503, GRPCStatus: -1, Span: sampler.Child(parent),
	})
	w.Requested(&Request{
		Connection: c, Version: "HTTP/2", Start: w.now, Method: "POST", Path: "/b", Status: 403, GRPCStatus: 7, Protocol: "grpc", Span: sampler.Root(tracing.NewTrace()),
		Denied: true, Policy: "shop/nobody", Reason: "denied", Err: errors.New("denied by policy"),
	})
	w.Closed(c)
	end := sending(t, e)

	spans := collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == 3 })
	end()
	w.want("tacit_otlp_exported_total", 3, "signal=spans")
	w.want("tacit_otlp_dropped_total", 0, "signal=spans")
	for i, want := range []struct {
		name, parent, message string
		attributes            map[string]string
	}{
		{"GET", parent.Span, "", map[string]string{
			"http.request.method": "GET", "url.path": "/a", "server.address": "db.shop", "http.response.status_code": "int_value:503",
			"network.protocol.version": "1.1", "error.type": "503", "tacit.source.workload": "shop/web-1",
		}},
		{"POST", "", "denied by policy", map[string]string{
			"rpc.grpc.status_code": "int_value:7", "tacit.policy": "shop/nobody", "tacit.reason": "denied", "tacit.outcome": "denied", "error.type": "denied",
		}},
		{"TCP connection", "", "connection reset", map[string]string{
			"network.transport": "tcp", "tacit.outcome": "reset", "tacit.phase.dial": "double_value:0.001", "tacit.connection.id": c.ID, "source.address": "10.0.0.1",
		}},
	} {
		s := spans[i]
		if s.Name != want.name || fmt.Sprintf("%x", s.ParentSpanId) != want.parent || s.Status.GetMessage() != want.message ||
			s.Status.GetCode() != trace.Status_STATUS_CODE_ERROR || s.Kind != trace.Span_SPAN_KIND_SERVER {
			t.Errorf("%d: %v", i, s.Span)
		}
		got := otlptest.Values(s.Attributes)
		for key, value := range want.attributes {
			if got[key] != value {
				t.Errorf("%s: %s is %q, want %q", want.name, key, got[key], value)
			}
		}
		for key, value := range map[string]string{"k8s.namespace.name": db.Namespace, "k8s.pod.name": db.Name, "k8s.node.name": "node-1", "service.namespace": db.Namespace} {
			if s.Resource[key] != value {
				t.Errorf("%s: resource's %s is %q, want %q", want.name, key, s.Resource[key], value)
			}
		}
		if s.Resource["service.name"] == "" {
			t.Errorf("%s: no service.name: %v", want.name, s.Resource)
		}
		if connection := want.name == "TCP connection"; !connection && fmt.Sprintf("%x", s.Links[0].TraceId) != c.ID {
			t.Errorf("%s: no link to its connection: %v", want.name, s.Links)
		}
	}
	if first := spans[0]; fmt.Sprintf("%x", first.TraceId) != parent.Trace || first.TraceState != parent.State || first.EndTimeUnixNano-first.StartTimeUnixNano != uint64(time.Second) {
		t.Errorf("a request below its caller's: %v", first)
	}
}

// sending sends until end is called, which waits for it.
func sending(t *testing.T, e *otlp.Exporter) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	return func() {
		cancel()
		<-ended
	}
}

// What callers write arrives whatever its bytes are, and takes nothing else with
// it.
func TestSpansOfAnyBytes(t *testing.T) {
	collector, url := otlptest.Listen(t, nil)
	e, err := otlp.New(otlp.Config{Endpoint: url, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *Options) { o.Spans = e })
	c := w.record()
	long := strings.Repeat("x", maxErrorText-1) + "\u00e9" // of which half is cut off
	for _, text := range []string{"/good", "/\xff\xfe", "/" + long[1:]} {
		w.Requested(&Request{
			Connection: c, Start: w.now, Method: text, Host: text, Path: text, Principal: text, Status: 403, GRPCStatus: -1,
			Span: tracing.NewSampler(1).Root(tracing.NewTrace()), Denied: true, Reason: "denied", Err: errors.New(text),
		})
	}
	end := sending(t, e)
	spans := collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == 3 })
	end()
	if got := e.Spans(); got != (otlp.Count{Sent: 3}) {
		t.Fatalf("counted %+v", got)
	}
	for i, want := range []string{"/good", "/?", "/" + long[1:maxErrorText-1] + "?..."} {
		s := spans[i]
		if path := otlptest.Values(s.Attributes)["url.path"]; path != want || s.Name != want || s.Status.Message != want {
			t.Errorf("%d: path %q, name %q, message %q, want %q", i, path, s.Name, s.Status.Message, want)
		}
	}
}

// Spans that wait take the memory that is counted for them, and keep nothing of
// the heads of requests.
func TestSpansThatWaitAreBounded(t *testing.T) {
	collector, url := otlptest.Listen(t, nil)
	e, err := otlp.New(otlp.Config{Endpoint: url, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *Options) { o.Spans = e })
	sampler := tracing.NewSampler(1)
	c := w.record()
	c.ID = tracing.NewTrace()
	c.Span = sampler.Root(c.ID)
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	const most = 2 << 20 // half of the room, for one pod
	before, n := heap(), 0
	for ; e.Spans().Dropped == 0; n++ {
		head := "GET /path db.shop " + strings.Repeat("x", 60_000)
		w.Requested(&Request{
			Connection: c, Start: w.now, Method: head[:3], Path: head[4:9], Host: head[10:17], Status: 200, GRPCStatus: -1,
			Span: sampler.Root(tracing.NewTrace()),
		})
	}
	kept := heap() - before
	t.Logf("%d spans take %d bytes", n, kept)
	if kept > 2*most {
		t.Errorf("%d spans take %d bytes, want about %d", n, kept, most)
	}
	end := sending(t, e)
	collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == n-1 })
	end()
}
