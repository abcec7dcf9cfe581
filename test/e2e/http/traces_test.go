package http

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// Requests get a span below their caller's, which the application is told as its
// own parent; a connection is one trace on both nodes. What a caller has not
// sampled stays as it is.
func TestTraces(t *testing.T) {
	const collectorAddress = "198.18.2.30:4317"
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--otlp", "http://" + collectorAddress, "--tracing", "--trace-sampling", "1"}},
		object("AuthorizationPolicy", "no-secrets", "{action: DENY, rules: [{to: [{operation: {paths: ['/secret']}}]}]}"))
	l, err := m.Pod("outside/target").Listen(collectorAddress)
	if err != nil {
		t.Fatal(err)
	}
	collector := otlptest.Start(t, l, nil)
	serve(t, m, "mesh/server", ":8080", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", strings.Join(r.Header["Traceparent"], " and "), strings.Join(r.Header["Tracestate"], " and "))
	})
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	const sampled, unsampled = "00-" + id + "-" + parent + "-01", "00-" + id + "-" + parent + "-00"
	const perVersion = 5 // three requests, and a connection on two nodes
	for version := 1; version <= 2; version++ {
		c := client(t, m, "mesh/client", version)
		_, below, _ := call(t, c, "GET", "http://"+server+"/below", "traceparent: "+sampled, "tracestate: congo=1")
		_, left, _ := call(t, c, "GET", "http://"+server+"/left", "traceparent: "+unsampled, "tracestate: congo=2")
		_, begun, _ := call(t, c, "GET", "http://"+server+"/begun")
		denied, _, _ := call(t, c, "GET", "http://"+server+"/secret", "traceparent: "+sampled)
		c.CloseIdleConnections()
		if left != unsampled+" congo=2" || denied != 403 {
			t.Errorf("HTTP/%d: not sampled, and told %q; denied with %d", version, left, denied)
		}
		spans := collector.Spans(t, func(s []otlptest.Span) bool { return len(s) == version*perVersion })[(version-1)*perVersion:]
		found := map[string]otlptest.Span{}
		for _, s := range spans {
			key := otlptest.Values(s.Attributes)["url.path"]
			if key == "" {
				key = s.Kind.String()
			}
			found[key] = s
		}
		request, first, refused := found["/below"], found["/begun"], found["/secret"]
		if want := fmt.Sprintf("00-%s-%x-01 congo=1", id, request.GetSpanId()); below != want || fmt.Sprintf("%x", request.GetParentSpanId()) != parent {
			t.Errorf("HTTP/%d: told %q, want %q; %v", version, below, want, request)
		}
		if want := fmt.Sprintf("00-%x-%x-01 ot=th:0", first.GetTraceId(), first.GetSpanId()); begun != want || len(first.GetParentSpanId()) != 0 {
			t.Errorf("HTTP/%d: told %q, want %q; %v", version, begun, want, first)
		}
		if got := otlptest.Values(refused.GetAttributes()); got["tacit.policy"] != "mesh/no-secrets" || refused.GetStatus().GetCode() != trace.Status_STATUS_CODE_ERROR {
			t.Errorf("HTTP/%d: denied: %v", version, refused)
		}
		near, far := found[trace.Span_SPAN_KIND_CLIENT.String()], found[trace.Span_SPAN_KIND_SERVER.String()]
		if string(near.GetTraceId()) != string(far.GetTraceId()) || string(far.GetParentSpanId()) != string(near.GetSpanId()) || far.GetTraceState() != "ot=th:0" {
			t.Errorf("HTTP/%d: the connection at the client's node %v, at the server's %v", version, near, far)
		}
		for pod, s := range map[string]otlptest.Span{"client": near, "server": request} {
			if s.Resource["k8s.pod.name"] != pod || s.Resource["k8s.namespace.name"] != "mesh" || s.Resource["service.name"] == "" {
				t.Errorf("HTTP/%d: the span of %s is of %v", version, pod, s.Resource)
			}
		}
		if links := request.GetLinks(); len(links) != 1 || string(links[0].GetSpanId()) != string(far.GetSpanId()) {
			t.Errorf("HTTP/%d: links %v, want the connection's span", version, links)
		}
	}
}
