// Package otlp sends spans and log records to an OpenTelemetry collector, by
// OTLP over gRPC.
//
// Whoever adds one waits for nothing: what waits to be sent is bounded in bytes,
// and what there is no room for is counted. It stands in for OpenTelemetry's SDK,
// which makes a proxy 1.4 MB larger in memory, and has one resource where a
// node's proxy tells of many pods. What does not belong here: what is worth a
// span or a record.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/internal/version"
)

// Config says where a collector is.
type Config struct {
	// Endpoint is http://HOST:PORT, in clear, or https://HOST:PORT.
	Endpoint string
	// Roots is a file of the PEM roots by which a collector is known; empty:
	// the system's.
	Roots string
	// Headers is a file of headers that go with each message, to https alone;
	// empty: none.
	Headers string
	// Resource is who the log records are of.
	Resource []*common.KeyValue
	Log      *zap.Logger
}

// Exporter sends. Its methods may be called from any goroutine; nil takes
// nothing.
type Exporter struct {
	conn  *grpc.ClientConn
	of    *resource.Resource
	spans *queue[span]
	logs  *queue[[]byte]
}

// span is one of a resource, which is asked for once a batch.
type span struct {
	encoded  []byte
	source   string
	resource func() []*common.KeyValue
}

// New makes an exporter; Run starts it. Nothing is connected before that. Files
// that cannot be read yet do not keep it from starting: the log is told.
func New(c Config) (*Exporter, error) {
	target, secure, err := parse(c.Endpoint)
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if secure {
		known := withRoots(c.Roots)
		if _, err := known.read(); err != nil {
			c.Log.Warn("nothing is sent to the OTLP collector until its roots can be read", zap.Error(err))
		}
		creds = known
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithUserAgent("tacit")}
	if c.Headers != "" {
		own := headers{c.Headers}
		if _, err := own.read(); err != nil {
			c.Log.Warn("nothing is sent to the OTLP collector until its headers can be read", zap.Error(err))
		}
		options = append(options, grpc.WithPerRPCCredentials(own))
	}
	conn, err := grpc.NewClient("dns:///"+target, options...)
	if err != nil {
		return nil, fmt.Errorf("OTLP endpoint %q: %w", c.Endpoint, err)
	}
	e := &Exporter{conn: conn, of: &resource.Resource{Attributes: c.Resource}}
	// Of the room for spans no source gets more than half of what the others leave.
	e.spans = newQueue("spans", true, e.sendSpans, c.Log)
	e.logs = newQueue("log records", false, e.sendLogs, c.Log)
	return e, nil
}

func parse(endpoint string) (target string, secure bool, err error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return "", false, fmt.Errorf("OTLP endpoint %q: want http://HOST:PORT or https://HOST:PORT of a collector that speaks OTLP over gRPC, such as http://otel-collector.observability.svc:4317", endpoint)
	}
	return u.Host, u.Scheme == "https", nil
}

// Span adds a span of a resource, of which source is a name, and for which the
// attributes are asked at most once a batch.
func (e *Exporter) Span(source string, attributes func() []*common.KeyValue, s *trace.Span) {
	if e != nil {
		encoded, err := proto.Marshal(s)
		e.spans.add(source, span{encoded, source, attributes}, len(encoded), err)
	}
}

// LogRecord adds a record of this program.
func (e *Exporter) LogRecord(r *logs.LogRecord) {
	if e != nil {
		encoded, err := proto.Marshal(r)
		e.logs.add("", encoded, len(encoded), err)
	}
}

// Run sends until the context ends, and then what still waits, if that is
// taken within flushLimit.
func (e *Exporter) Run(ctx context.Context) error {
	if e == nil {
		return nil
	}
	defer e.conn.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.spans.run(ctx) })
	group.Go(func() error { return e.logs.run(ctx) })
	return group.Wait()
}

// RunWith is Run with something that adds until the context ends: what that adds
// at its own end is sent, too. If it ends before, the sending goes on.
func (e *Exporter) RunWith(ctx context.Context, feed func(context.Context) error) error {
	sending, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var group errgroup.Group
	group.Go(func() error { return e.Run(sending) })
	err := feed(ctx)
	if err == nil {
		<-ctx.Done()
		err = ctx.Err()
	}
	end()
	_ = group.Wait() // that it was told to end
	return err
}

// Count is what became of one kind of what was added.
type Count struct{ Sent, Dropped uint64 }

// Spans are the ones that a collector has taken, and the ones that were dropped.
func (e *Exporter) Spans() Count { return e.spans.count() }

// Logs are the log records, likewise.
func (e *Exporter) Logs() Count { return e.logs.count() }

func (e *Exporter) sendSpans(ctx context.Context, batch []span) (rejected int64, err error) {
	request := &collectortrace.ExportTraceServiceRequest{}
	of := map[string]*trace.ScopeSpans{}
	for _, s := range batch {
		scope := of[s.source]
		if scope == nil {
			scope = &trace.ScopeSpans{Scope: instrumentation()}
			of[s.source] = scope
			request.ResourceSpans = append(request.ResourceSpans, &trace.ResourceSpans{
				Resource: &resource.Resource{Attributes: s.resource()}, ScopeSpans: []*trace.ScopeSpans{scope},
			})
		}
		appendEncoded(scope, fieldSpans, s.encoded)
	}
	answer, err := collectortrace.NewTraceServiceClient(e.conn).Export(ctx, request)
	partial := answer.GetPartialSuccess()
	return partial.GetRejectedSpans(), rejection(err, partial.GetRejectedSpans(), partial.GetErrorMessage())
}

func (e *Exporter) sendLogs(ctx context.Context, batch [][]byte) (rejected int64, err error) {
	scope := &logs.ScopeLogs{Scope: instrumentation()}
	for _, encoded := range batch {
		appendEncoded(scope, fieldLogRecords, encoded)
	}
	request := &collectorlogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource: e.of, ScopeLogs: []*logs.ScopeLogs{scope},
	}}}
	answer, err := collectorlogs.NewLogsServiceClient(e.conn).Export(ctx, request)
	partial := answer.GetPartialSuccess()
	return partial.GetRejectedLogRecords(), rejection(err, partial.GetRejectedLogRecords(), partial.GetErrorMessage())
}

// Numbers of the fields of what is repeated in ScopeSpans and ScopeLogs.
const (
	fieldSpans      protowire.Number = 2
	fieldLogRecords protowire.Number = 2
)

// appendEncoded appends to a repeated field what is encoded already. As fields
// that are not known are written as they are, it need not be decoded for that.
func appendEncoded(to proto.Message, field protowire.Number, encoded []byte) {
	m := to.ProtoReflect()
	raw := protowire.AppendTag(m.GetUnknown(), field, protowire.BytesType)
	m.SetUnknown(protowire.AppendBytes(raw, encoded))
}

// rejection is the error, or what a collector says of what it has not taken. With
// nothing rejected its message is only advice.
func rejection(err error, rejected int64, message string) error {
	if err == nil && rejected > 0 {
		return fmt.Errorf("%w: %.500s", errPartial, message)
	}
	return err
}

var errPartial = errors.New("the collector did not take all of it")

func instrumentation() *common.InstrumentationScope {
	return &common.InstrumentationScope{Name: "github.com/tacit-mesh/tacit", Version: version.String()}
}

// UnixNano is a time as OTLP has it; 0 for none.
func UnixNano(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}
