package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/internal/otlp/otlptest"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Requests get a span below their caller's, which the application is told as its
// own parent. What a caller has not sampled, and everything while tracing is
// off, stays as it is.
func TestRequestsAreTraced(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	const sampled, unsampled = "00-" + id + "-" + parent + "-01", "00-" + id + "-" + parent + "-00"
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, strings.Join(r.Header["Traceparent"], "+")+" "+strings.Join(r.Header["Tracestate"], "+"))
	}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	onlyGET := &model.Policy{
		Name: "get", Namespace: "mesh", Scope: model.ScopeNamespace, Action: model.ActionAllow,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &model.HTTPMatch{Methods: []model.StringMatch{{Value: "GET"}}}}}}}}},
	}
	for _, on := range []bool{true, false} {
		collector, url := otlptest.Listen(t, nil)
		e, err := otlp.New(otlp.Config{Endpoint: url, Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		config := Config{Recorder: telemetry.New(telemetry.Options{Spans: e})}
		if on {
			config.Tracing = tracing.NewSampler(1)
		}
		s := startOneServerWith(t, app.Listener.Addr(), config, onlyGET)
		told := map[string]string{}
		for version := 1; version <= 2; version++ {
			c := s.client(t, version)
			for path, given := range map[string]string{"/below": sampled, "/left": unsampled, "/begun": ""} {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server"+path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				if given != "" {
					r.Header.Set("traceparent", given)
					r.Header.Set("tracestate", "congo=1")
				}
				answer, err := c.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(answer.Body)
				if err = errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusOK {
					t.Fatal(answer.Status, err)
				}
				told[fmt.Sprint(version, path)] = string(text)
			}
			c.CloseIdleConnections()
		}
		spans := map[string]otlptest.Span{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		// Of each version two requests and the connection.
		for _, span := range collector.Spans(t, func(s []otlptest.Span) bool { return !on || len(s) == 6 }) {
			values := otlptest.Values(span.Attributes)
			version := "1"
			if values["network.protocol.version"] == "2" {
				version = "2"
			}
			spans[version+values["url.path"]] = span
		}
		cancel()
		<-ended
		for version := 1; version <= 2; version++ {
			below, begun := spans[fmt.Sprint(version, "/below")], spans[fmt.Sprint(version, "/begun")]
			want := map[string]string{"/left": unsampled + " congo=1", "/below": sampled + " congo=1", "/begun": " "}
			if on {
				want["/below"] = fmt.Sprintf("00-%s-%x-01 congo=1", id, below.GetSpanId())
				want["/begun"] = fmt.Sprintf("00-%x-%x-01 ot=th:0", begun.GetTraceId(), begun.GetSpanId())
				if fmt.Sprintf("%x", below.GetParentSpanId()) != parent || len(begun.GetParentSpanId()) != 0 {
					t.Errorf("HTTP/%d: %v and %v", version, below, begun)
				}
			}
			for path, text := range want {
				if got := told[fmt.Sprint(version, path)]; got != text {
					t.Errorf("tracing %v, HTTP/%d, %s: told %q, want %q", on, version, path, got, text)
				}
			}
		}
	}
}

// A connection is one trace on both nodes: what the client's proxy says in the
// CONNECT is the parent at the server's, and its choice holds there.
func TestConnectionsAreOneTrace(t *testing.T) {
	for _, ratio := range []float64{0, 1} {
		p := &Proxy{Config: Config{Tracing: tracing.NewSampler(ratio)}}
		near, far := &Connection{proxy: p}, &Connection{proxy: &Proxy{Config: Config{Tracing: tracing.NewSampler(1 - ratio)}}}
		near.record.ID = tracing.NewTrace()
		near.record.Span = p.Tracing.Root(near.record.ID)
		sent := near.headers()
		far.traced(func(name string) string {
			if i := slices.IndexFunc(sent, func(h hbone.Header) bool { return h.Name == name }); i >= 0 {
				return sent[i].Value
			}
			return ""
		})
		if far.record.ID != near.record.ID {
			t.Errorf("the id %s arrives as %s", near.record.ID, far.record.ID)
		}
		span := far.record.Span
		if (span != nil) != (ratio == 1) {
			t.Fatalf("with a share of %v: %+v at the server's node", ratio, span)
		}
		if span != nil && (span.Parent != near.record.Span.Span || span.Trace != near.record.ID || span.State != "ot=th:0") {
			t.Errorf("below %+v: %+v", near.record.Span, span)
		}
	}
}
