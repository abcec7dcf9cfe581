// Package otlptest is a collector for tests: OTLP's own services over gRPC.
package otlptest

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Span is one with what it is of.
type Span struct {
	*trace.Span
	Resource map[string]string
}

// Collector keeps what it is sent.
type Collector struct {
	collectortrace.UnimplementedTraceServiceServer
	collectorlogs.UnimplementedLogsServiceServer
	// Answer, unless nil, is what becomes of each message. It is set before the
	// first.
	Answer func(context.Context) error

	mu      sync.Mutex
	changed chan struct{} // closed with the next message
	spans   []Span
	logs    []*logs.LogRecord
	sizes   []int
}

// Start serves a collector on a listener until the test ends.
func Start(t testing.TB, l net.Listener, answer func(context.Context) error) *Collector {
	t.Helper()
	c := &Collector{Answer: answer, changed: make(chan struct{})}
	s := grpc.NewServer()
	collectortrace.RegisterTraceServiceServer(s, c)
	collectorlogs.RegisterLogsServiceServer(s, logsService{c})
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) }) // until it is stopped
	t.Cleanup(func() {
		s.Stop()
		served.Wait()
	})
	return c
}

// Listen is Start on this machine; url is for otlp.Config.
func Listen(t testing.TB, answer func(context.Context) error) (c *Collector, url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return Start(t, l, answer), "http://" + l.Addr().String()
}

// Export implements OTLP's TraceService.
func (c *Collector) Export(ctx context.Context, r *collectortrace.ExportTraceServiceRequest) (*collectortrace.ExportTraceServiceResponse, error) {
	if c.Answer != nil {
		if err := c.Answer(ctx); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, of := range r.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, Span{s, Values(of.Resource.Attributes)})
				n++
			}
		}
	}
	c.sizes = append(c.sizes, n)
	c.tell()
	return &collectortrace.ExportTraceServiceResponse{}, nil
}

// logsService is the other service, whose method has the same name.
type logsService struct{ *Collector }

// Export implements OTLP's LogsService.
func (c logsService) Export(_ context.Context, r *collectorlogs.ExportLogsServiceRequest) (*collectorlogs.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.ResourceLogs {
		for _, scope := range of.ScopeLogs {
			c.logs = append(c.logs, scope.LogRecords...)
		}
	}
	c.tell()
	return &collectorlogs.ExportLogsServiceResponse{}, nil
}

func (c *Collector) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Spans waits until those that it has do, and returns them.
func (c *Collector) Spans(t testing.TB, do func([]Span) bool) []Span {
	t.Helper()
	return await(t, c, func() []Span { return c.spans }, do)
}

// Logs waits until the records that it has do, and returns them.
func (c *Collector) Logs(t testing.TB, do func([]*logs.LogRecord) bool) []*logs.LogRecord {
	t.Helper()
	return await(t, c, func() []*logs.LogRecord { return c.logs }, do)
}

func await[T any](t testing.TB, c *Collector, all func() []T, do func([]T) bool) []T {
	t.Helper()
	for {
		c.mu.Lock()
		got, changed := slices.Clone(all()), c.changed
		c.mu.Unlock()
		if do(got) {
			return got
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("the test ends before what it waits for has come: %v", got)
		}
	}
}

// Messages is how many spans came in each message.
func (c *Collector) Messages() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sizes)
}

// Values are attributes as a map; numbers as they are printed.
func Values(attributes []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		if s, ok := a.Value.Value.(*common.AnyValue_StringValue); ok {
			out[a.Key] = s.StringValue
		} else {
			out[a.Key] = a.Value.String()
		}
	}
	return out
}
