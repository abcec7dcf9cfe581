package proxy

import (
	"strings"

	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/tracing"
)

// traced finds out whether the request gets a span: below that of the
// application, if there is one which is sampled, or of a trace that begins here.
func (x *exchange) traced() {
	sampler := x.requests.proxy.Tracing
	if sampler == nil {
		return
	}
	given, present := x.request.Header(tracing.ParentHeader)
	state, _ := x.request.Header(tracing.StateHeader)
	if parent, ok := tracing.Parse(given, state); ok && present {
		x.span = sampler.Child(parent)
		return
	}
	x.span = sampler.Root(tracing.NewTrace())
}

// below are the fields of a request as the application gets them: its own spans
// are below this one.
func below(fields []http.Field, span *tracing.Span) []http.Field {
	out := make([]http.Field, 0, len(fields)+2)
	for _, f := range fields {
		if !strings.EqualFold(f.Name, tracing.ParentHeader) && !strings.EqualFold(f.Name, tracing.StateHeader) {
			out = append(out, f)
		}
	}
	out = append(out, http.Field{Name: tracing.ParentHeader, Value: span.String()})
	if span.State != "" {
		out = append(out, http.Field{Name: tracing.StateHeader, Value: span.State})
	}
	return out
}
