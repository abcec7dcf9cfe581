package telemetry

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// request is one of HTTP that was answered by the application.
func (w *world) request() *Request {
	return &Request{
		Connection: w.record(), Protocol: "http", Version: "HTTP/1.1", Start: w.now, Method: "GET", Host: "db.data", Path: "/a",
		Status: 200, GRPCStatus: -1, Policy: "data/allow-web", Reason: "allowed", Sent: 10, Received: 2000,
	}
}

func TestMetricsOfRequests(t *testing.T) {
	w := newWorld(t, nil)
	ok, missing, call, refused := w.request(), w.request(), w.request(), w.request()
	missing.Status = 404
	call.Protocol, call.GRPCStatus = "grpc", 5
	refused.Denied, refused.Status, refused.Policy, refused.Reason = true, 403, "data/no-delete", "denied"
	w.now = w.now.Add(20 * time.Millisecond)
	for _, q := range []*Request{ok, ok, missing, call, refused} {
		w.Requested(q)
	}
	ends := []string{
		"reporter=destination", "connection_security_policy=mutual_tls", "source_workload=web-deploy", "source_principal=spiffe://cluster.local/ns/shop/sa/web",
		"destination_workload=db", "destination_service=db.data.svc.cluster.local",
	}
	labelled := func(more ...string) []string { return append(more, ends...) }
	w.want("istio_requests_total", 2, labelled("request_protocol=http", "response_code=200", "response_flags=-")...)
	w.want("istio_requests_total", 1, labelled("request_protocol=http", "response_code=404")...)
	w.want("istio_requests_total", 1, labelled("request_protocol=grpc", "response_code=200", "grpc_response_status=5")...)
	w.want("istio_requests_total", 1, labelled("request_protocol=http", "response_code=403", "response_flags="+flagsDenied)...)
	for _, name := range []string{"istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
		w.want(name, 2, labelled("request_protocol=http", "response_code=200")...)
	}
	w.want("tacit_policy_decisions_total", 4, "decision=allow", "policy=data/allow-web")
	w.want("tacit_policy_decisions_total", 1, "decision=deny", "policy=data/no-delete")
	w.want("tacit_denials_total", 1, "direction=inbound", "reason=denied")
}

// Policies on dry run and for the record are counted by what they would do.
func TestPoliciesOfRequests(t *testing.T) {
	w := newWorld(t, nil)
	passed, refused := w.request(), w.request()
	passed.DryRun, passed.Audit = "data/later", "data/audit"
	refused.Denied, refused.Policy, refused.DryRun = true, "data/no-delete", "data/open"
	w.Requested(passed)
	w.Requested(refused)
	w.want("tacit_policy_decisions_total", 1, "decision=dry_run_deny", "policy=data/later")
	w.want("tacit_policy_decisions_total", 1, "decision=dry_run_allow", "policy=data/open")
	w.want("tacit_policy_decisions_total", 1, "decision=audit", "policy=data/audit")
}

func TestLinesOfRequests(t *testing.T) {
	const (
		ends = `"src.addr":"10.0.0.1:4000","src.workload":"web-1","src.namespace":"shop","src.identity":"spiffe://cluster.local/ns/shop/sa/web",` +
			`"dst.addr":"10.0.0.2:5432","dst.workload":"db-0","dst.namespace":"data","dst.identity":"spiffe://cluster.local/ns/data/sa/db",`
		about = `"http.version":"HTTP/1.1","http.method":"GET","http.host":"db.data","http.path":"/a",`
		begin = `"id":"` + id + `","direction":"inbound","security":"mtls","outcome":`
	)
	for name, test := range map[string]struct {
		change func(*Request)
		want   string
	}{
		"answered": {func(q *Request) { q.Principal = "issuer/ann" },
			`{"level":"info","msg":"request",` + begin + `"ok",` + ends + about + `"http.status":200,"principal":"issuer/ann",` +
				`"bytes_sent":10,"bytes_recv":2000,"duration_ms":12.5,"policy":"data/allow-web","reason":"allowed"}`},
		"denied": {func(q *Request) {
			q.Denied, q.Status, q.Policy, q.Reason, q.Attribute, q.Err = true, 403, "data/no-delete", "denied", "methods", errors.New("answered with 403")
		}, `{"level":"warn","msg":"request denied",` + begin + `"denied",` + ends + about + `"http.status":403,` +
			`"bytes_sent":10,"bytes_recv":2000,"duration_ms":12.5,"policy":"data/no-delete","reason":"denied","attribute":"methods","error":"answered with 403"}`},
		"broken off, of gRPC": {func(q *Request) { q.GRPCStatus, q.Err = 0, errors.New("the stream was reset") },
			`{"level":"info","msg":"request",` + begin + `"reset",` + ends + about + `"http.status":200,"grpc.status":0,` +
				`"bytes_sent":10,"bytes_recv":2000,"duration_ms":12.5,"policy":"data/allow-web","reason":"allowed","error":"the stream was reset"}`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			q := w.request()
			test.change(q)
			w.now = w.now.Add(12500 * time.Microsecond)
			w.Requested(q)
			if got := w.lines(); len(got) != 1 || got[0] != test.want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), test.want)
			}
		})
	}
}

// What callers write does not make lines grow without bounds.
func TestLinesOfRequestsAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	q := w.request()
	q.Path, q.Host, q.Method, q.Principal = strings.Repeat("/a", 50_000), strings.Repeat("h", 50_000), strings.Repeat("M", 50_000), strings.Repeat("p", 50_000)
	w.Requested(q)
	if got := w.lines(); len(got) != 1 || len(got[0]) > 6*maxErrorText {
		t.Errorf("%d lines, the first of %d bytes", len(got), len(got[0]))
	}
}
