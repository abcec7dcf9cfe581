package proxy

import (
	"strings"

	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The headers of a CONNECT are Istio ambient's. What the peer makes of them
// decides nothing: they decorate its telemetry.
const (
	baggageHeader   = "baggage"
	forwardedHeader = "forwarded"
	networkHeader   = "x-forwarded-network" // the source's, for another one
)

func (c *Connection) headers() []hbone.Header {
	forwarded := `for="` + c.source().String() + `"`
	if c.record.Service != nil {
		forwarded += ";host=" + c.record.Service.Hostname
	}
	headers := []hbone.Header{
		{Name: forwardedHeader, Value: forwarded},
	}
	if span := c.record.Span; span != nil {
		headers = append(headers, hbone.Header{Name: tracing.ParentHeader, Value: span.String()},
			hbone.Header{Name: tracing.StateHeader, Value: span.State})
	} else {
		headers = append(headers, hbone.Header{Name: tracing.ParentHeader, Value: traceparent(c.record.ID)})
	}
	if w := c.record.Source.Workload; w != nil {
		headers = append(headers, hbone.Header{Name: baggageHeader, Value: baggage(w)})
	}
	return headers
}

// traceparent names a connection by the id of a trace of which there are no
// spans.
func traceparent(id string) string {
	return tracing.Context{Trace: id, Span: tracing.NewSpan()}.String()
}

// traced gives an inbound connection the id that its caller's proxy has for it,
// or else a new one, and makes its span one below the caller's.
func (c *Connection) traced(header func(name string) string) {
	parent, ok := tracing.Parse(header(tracing.ParentHeader), header(tracing.StateHeader))
	if !ok {
		c.record.ID = tracing.NewTrace()
		c.record.Span = c.proxy.Tracing.Root(c.record.ID)
		return
	}
	c.record.ID = parent.Trace
	c.record.Span = c.proxy.Tracing.Child(parent)
}

// baggage describes the source, keys without a value left out.
func baggage(w *model.Workload) string {
	var b strings.Builder
	for _, item := range [][2]string{
		{"k8s.cluster.name", w.ClusterID},
		{"k8s.namespace.name", w.Namespace},
		{"k8s." + w.WorkloadType.String() + ".name", w.WorkloadName},
		{"service.name", w.CanonicalName},
		{"service.version", w.CanonicalRevision},
		{"cloud.region", w.Locality.Region},
		{"cloud.availability_zone", w.Locality.Zone},
	} {
		if item[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(item[0] + "=" + item[1])
	}
	return b.String()
}
