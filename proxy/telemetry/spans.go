package telemetry

import (
	"cmp"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Names of attributes are those of OpenTelemetry's semantic conventions
// (https://opentelemetry.io/docs/specs/semconv/) where it has any; ours begin
// with "tacit.".

// spanOfConnection tells a collector of a connection that has ended.
func (r *Recorder) spanOfConnection(c *Record, now time.Time) {
	if r.options.Spans == nil || c.Span == nil {
		return
	}
	s := newSpan("TCP connection", c.Span, c.Direction, c.Start, now)
	a := connectionAttributes(c)
	a.String("network.transport", "tcp")
	a.String("tacit.outcome", c.Outcome.String())
	if c.Service != nil {
		a.String("tacit.service", c.Service.Hostname)
	}
	a.Int("tacit.bytes_sent", c.Sent)
	a.Int("tacit.bytes_received", c.Received)
	for phase, d := range c.Phases {
		if d > 0 {
			a.Float("tacit.phase."+Phase(phase).String(), d.Seconds())
		}
	}
	decided(&a, c.decision())
	if c.Outcome != OK {
		fail(s, &a, c.Reason, c.Err)
	}
	s.Attributes = a
	r.sendSpan(c, s)
}

// spanOfRequest tells a collector of a request that has ended. It belongs to the
// trace of the application, so that the connection's is a link.
func (r *Recorder) spanOfRequest(q *Request, now time.Time) {
	if r.options.Spans == nil || q.Span == nil {
		return
	}
	c := q.Connection
	s := newSpan(cmp.Or(bounded(q.Method), "HTTP"), q.Span, c.Direction, q.Start, now)
	if id, err := hex.DecodeString(connectionID(c.ID)); err == nil && c.Span != nil && len(id) > 0 {
		s.Links = []*trace.Span_Link{{TraceId: id, SpanId: spanID(c.Span.Span)}}
	}
	a := connectionAttributes(c)
	a.String("http.request.method", bounded(q.Method))
	a.String("url.scheme", "http")
	a.String("url.path", bounded(q.Path))
	a.String("server.address", hostName(bounded(q.Host)))
	a.String("network.protocol.version", strings.TrimPrefix(q.Version, "HTTP/"))
	if q.Status != 0 {
		a.Int("http.response.status_code", int64(q.Status))
	}
	if q.GRPCStatus >= 0 && q.Protocol == "grpc" {
		a.Int("rpc.grpc.status_code", int64(q.GRPCStatus))
	}
	a.Int("http.request.body.size", q.Sent)
	a.Int("http.response.body.size", q.Received)
	a.String("tacit.outcome", q.outcome().String())
	a.String("tacit.principal", bounded(q.Principal))
	decided(&a, decision{q.Policy, q.Reason, q.Attribute, q.DryRun, q.Bypass, q.Err})
	switch {
	case q.Denied || q.Err != nil:
		fail(s, &a, q.Reason, q.Err)
	case q.Status >= 500:
		fail(s, &a, code(q.Status), nil)
	}
	s.Attributes = a
	r.sendSpan(c, s)
}

func newSpan(name string, of *tracing.Span, d Direction, start, end time.Time) *trace.Span {
	id, _ := hex.DecodeString(of.Trace) // package tracing made or read them
	s := &trace.Span{
		TraceId: id, SpanId: spanID(of.Span), ParentSpanId: spanID(of.Parent), TraceState: of.State,
		Name: otlp.Text(name), Kind: trace.Span_SPAN_KIND_SERVER, Flags: uint32(trace.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK) | 1,
		StartTimeUnixNano: otlp.UnixNano(start), EndTimeUnixNano: otlp.UnixNano(end),
	}
	if of.Parent != "" { // which is always somebody else's
		s.Flags |= uint32(trace.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
	}
	if d == Outbound {
		s.Kind = trace.Span_SPAN_KIND_CLIENT
	}
	return s
}

func spanID(text string) []byte {
	id, _ := hex.DecodeString(text)
	return id
}

func connectionAttributes(c *Record) (a otlp.Attributes) {
	a.String("source.address", address(c.Source.Addr))
	a.Int("source.port", int64(c.Source.Addr.Port()))
	a.String("destination.address", address(c.Destination.Addr))
	a.Int("destination.port", int64(c.Destination.Addr.Port()))
	a.String("tacit.connection.id", connectionID(c.ID))
	a.String("tacit.direction", c.Direction.String())
	a.String("tacit.security", c.Security.String())
	a.String("tacit.source.identity", c.Source.Identity.String())
	a.String("tacit.destination.identity", c.Destination.Identity.String())
	a.String("tacit.source.workload", c.Source.workload())
	a.String("tacit.destination.workload", c.Destination.workload())
	return a
}

// workload is NAMESPACE/NAME, empty where the pod is not known.
func (e *End) workload() string {
	pod, namespace := e.Name, e.Namespace
	if e.Workload != nil {
		pod, namespace = e.Workload.Name, e.Workload.Namespace
	}
	if pod == "" {
		return ""
	}
	return namespace + "/" + pod
}

func decided(a *otlp.Attributes, d decision) {
	a.String("tacit.policy", d.policy)
	a.String("tacit.reason", d.reason)
	a.String("tacit.attribute", d.attribute)
	a.String("tacit.dry_run", d.dryRun)
	a.String("tacit.bypass", d.bypass)
}

func fail(s *trace.Span, a *otlp.Attributes, reason string, err error) {
	a.String("error.type", cmp.Or(reason, "_OTHER"))
	s.Status = &trace.Status{Code: trace.Status_STATUS_CODE_ERROR}
	if err != nil {
		s.Status.Message = otlp.Text(errorText(err))
	}
}

// hostName is a Host without its port.
func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// sendSpan is told on behalf of the local pod.
func (r *Recorder) sendSpan(c *Record, s *trace.Span) {
	local := &c.Source
	if c.Direction == Inbound {
		local = &c.Destination
	}
	of := *local
	key := of.workload()
	if key == "" {
		key = of.Addr.Addr().String()
	}
	r.options.Spans.Span(key, func() []*common.KeyValue { return podResource(&of, r.options.Node) }, s)
}

// podResource is a pod as semantic conventions have it.
func podResource(e *End, node string) []*common.KeyValue {
	var a otlp.Attributes
	w := e.Workload
	if w == nil {
		w = &model.Workload{Name: e.Name, Namespace: e.Namespace}
	}
	a.String("service.name", cmp.Or(w.CanonicalName, w.WorkloadName, w.Name, "unknown_service"))
	a.String("service.namespace", w.Namespace)
	a.String("service.version", w.CanonicalRevision)
	a.String("service.instance.id", w.UID)
	a.String("k8s.cluster.name", w.ClusterID)
	a.String("k8s.namespace.name", w.Namespace)
	a.String("k8s.pod.name", w.Name)
	a.String("k8s.pod.uid", w.PodUID)
	a.String("k8s.pod.ip", address(e.Addr))
	if kind := w.WorkloadType.String(); kind != "pod" {
		a.String("k8s."+kind+".name", w.WorkloadName)
	}
	a.String("k8s.node.name", node)
	a.String("cloud.region", w.Locality.Region)
	a.String("cloud.availability_zone", w.Locality.Zone)
	return a
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().String()
}

// registerExported counts what a collector is told.
func registerExported(registry prometheus.Registerer, signal string, count func() otlp.Count) {
	counter := func(name, help string, read func(otlp.Count) uint64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"signal": signal}},
			func() float64 { return float64(read(count())) }))
	}
	counter("tacit_otlp_exported_total", "Spans and log records that the OpenTelemetry collector has taken.", func(c otlp.Count) uint64 { return c.Sent })
	counter("tacit_otlp_dropped_total", "Spans and log records that it has not taken, or that there was no room for.", func(c otlp.Count) uint64 { return c.Dropped })
}
