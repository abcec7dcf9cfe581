package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/internal/audit"
	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func named(name string) func() []*common.KeyValue {
	return func() []*common.KeyValue {
		var a Attributes
		a.String("service.name", name)
		return a
	}
}

func exporter(t *testing.T, url string) *Exporter {
	t.Helper()
	e, err := New(Config{Endpoint: url, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// run runs it until end is called, or the test ends.
func run(t *testing.T, e *Exporter) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	var once atomic.Bool
	end = func() {
		cancel()
		if once.CompareAndSwap(false, true) {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		}
	}
	t.Cleanup(end)
	return end
}

// What is added arrives with its resource, also what was added just before the
// end and what a collector takes only when it is asked again.
func TestSpansArrive(t *testing.T) {
	var asked atomic.Int64
	collector, url := otlptest.Listen(t, func(context.Context) error {
		if asked.Add(1) == 1 {
			return status.Error(codes.Unavailable, "in a moment")
		}
		return nil
	})
	e := exporter(t, url)
	end := run(t, e)
	const first, last = 600, 5
	for i := range first {
		e.Span(fmt.Sprint(i%2), named(fmt.Sprint("pod", i%2)), &trace.Span{Name: fmt.Sprint(i)})
	}
	collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == first })
	for i := range last {
		e.Span("late", named("late"), &trace.Span{Name: fmt.Sprint(first + i)})
	}
	end()
	seen := map[string]bool{}
	for _, s := range collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == first+last }) {
		var i int
		_, err := fmt.Sscan(s.Name, &i)
		want := fmt.Sprint("pod", i%2)
		if i >= first {
			want = "late"
		}
		if err != nil || s.Resource["service.name"] != want || seen[s.Name] {
			t.Errorf("span %s of %v, want %s, once", s.Name, s.Resource, want)
		}
		seen[s.Name] = true
	}
	if got := e.Spans(); got != (Count{Sent: first + last}) {
		t.Errorf("counted %+v", got)
	}
	for _, n := range collector.Messages() {
		if n > maxBatch {
			t.Errorf("%d spans in one message, want at most %d", n, maxBatch)
		}
	}
}

// What a collector refuses for good is dropped and counted.
func TestRefusedIsDropped(t *testing.T) {
	var asked atomic.Int64
	collector, url := otlptest.Listen(t, func(context.Context) error {
		if asked.Add(1) == 1 {
			return status.Error(codes.InvalidArgument, "no")
		}
		return nil
	})
	e := exporter(t, url)
	end := run(t, e)
	for range maxBatch + 1 {
		e.Span("a", named("a"), &trace.Span{})
	}
	collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == 1 })
	end()
	if got := e.Spans(); got != (Count{Sent: 1, Dropped: maxBatch}) {
		t.Errorf("counted %+v", got)
	}
}

// Nobody waits for a collector that takes nothing: what there is no room for is
// counted, and one source does not take the room of another.
func TestRoomIsBounded(t *testing.T) {
	e := exporter(t, "http://127.0.0.1:1")
	span := &trace.Span{Name: strings.Repeat("x", 1000)}
	const many = 100_000
	for range many {
		e.Span("greedy", named("greedy"), span)
	}
	kept := uint64(len(e.spans.items))
	if got := e.Spans(); got.Dropped+kept != many || kept*1000 > maxWaiting || kept == 0 {
		t.Errorf("%d are kept, counted %+v", kept, got)
	}
	for range 10 {
		e.Span("other", named("other"), span)
	}
	if n := uint64(len(e.spans.items)); n != kept+10 {
		t.Errorf("%d of another source are kept, want 10", n-kept)
	}
	if e.spans.room.Taken() > maxWaiting {
		t.Errorf("%d bytes are kept", e.spans.room.Taken())
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = e.Run(ended) // which flushes in vain
	if got := e.Spans(); got.Sent != 0 || got.Dropped != many+10 || e.spans.room.Taken() != 0 {
		t.Errorf("after the end %+v, %d bytes taken", got, e.spans.room.Taken())
	}
}

// The audit log goes out as it is chained, with or without a file, and what came
// out verifies.
func TestAuditLogArrives(t *testing.T) {
	for _, path := range []string{"", filepath.Join(t.TempDir(), "audit.jsonl")} {
		collector, url := otlptest.Listen(t, nil)
		e := exporter(t, url)
		l, err := audit.Open(audit.Config{Path: path, Program: "test", Log: zap.NewNop(), Export: (&Flags{audit: true}).Audit(e)})
		if err != nil {
			t.Fatal(err)
		}
		const id = "4bf92f3577b34da6a3ce929d0e0e4736"
		l.Write(audit.EventDenied, map[string]string{"id": id, "policy": "shop/nobody"})
		l.Write(audit.EventBypassed, map[string]string{"id": "forged"})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := e.RunWith(ctx, l.Run); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		records := collector.Logs(t, func(r []*logs.LogRecord) bool { return len(r) == 3 })
		var chain bytes.Buffer
		for _, r := range records {
			fmt.Fprintln(&chain, r.Body.GetStringValue())
		}
		var v audit.Verifier
		if err := v.Read("what was exported", &chain); err != nil || v.Verified().Records != 3 {
			t.Errorf("%d records verify: %v", v.Verified().Records, err)
		}
		denied := records[1]
		if fmt.Sprintf("%x", denied.TraceId) != id || denied.EventName != "tacit.audit.denied" || denied.SeverityText != "WARN" ||
			otlptest.Values(denied.Attributes)["tacit.policy"] != "shop/nobody" {
			t.Errorf("a denial: %v", denied)
		}
		if records[2].TraceId != nil {
			t.Errorf("an id that is none: %v", records[2])
		}
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]bool{
		"http://otel-collector.observability:4317": true, "https://[2001:db8::1]:4317/": true,
		"otel-collector:4317": false, "http://otel-collector": false, "grpc://a:1": false, "http://user:pass@a:1": false,
		"http://a:4318/v1/traces": false, "": false, "http://a:1?b": false,
	} {
		if _, _, err := parse(endpoint); (err == nil) != want {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	for _, f := range []Flags{{audit: true}, {roots: "file"}, {endpoint: "a:1"}} {
		if f.Check() == nil {
			t.Errorf("%+v is accepted", f)
		}
	}
}
