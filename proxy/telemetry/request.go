package telemetry

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/proxy/tracing"
)

// Access lines beyond these are counted and summed up, denials apart, which
// have bounds of their own.
const (
	accessPerSecond = 500
	accessBurst     = 1000
)

// Request is the story of one request of HTTP and its response. Its connection
// says who the two ends are.
type Request struct {
	Connection *Record
	Protocol   string // of istio_requests_total: "http" or "grpc"
	Version    string // "HTTP/1.1" and such
	Start      time.Time
	Method     string
	Host, Path string // without the query, which may hold secrets
	Principal  string // of a verified token

	Status     int // 0: there was no response
	GRPCStatus int // -1: not known
	// Denied is set for what was answered here instead of by the application,
	// and for what was ended by a change of policy.
	Denied                            bool
	Policy, Reason, Attribute, DryRun string
	Audit, Bypass                     string
	Closest                           bool // see Record
	Err                               error
	Span                              *tracing.Span // to be told of; nil for none
	Sent, Received                    int64         // bytes of the bodies, as Record has it
}

func (q *Request) outcome() Outcome {
	switch {
	case q.Denied:
		return Denied
	case q.Err != nil:
		return Reset
	}
	return OK
}

// requestLine is a request as it is logged.
type requestLine struct {
	*Request
	end time.Time
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (l requestLine) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	addString(enc, "id", connectionID(l.Connection.ID))
	enc.AddString("direction", l.Connection.Direction.String())
	enc.AddString("security", l.Connection.Security.String())
	enc.AddString("outcome", l.outcome().String())
	addEnd(enc, &l.Connection.Source, "src.addr", "src.workload", "src.namespace", "src.identity")
	addEnd(enc, &l.Connection.Destination, "dst.addr", "dst.workload", "dst.namespace", "dst.identity")
	enc.AddString("http.version", l.Version)
	enc.AddString("http.method", bounded(l.Method))
	enc.AddString("http.host", bounded(l.Host))
	enc.AddString("http.path", bounded(l.Path))
	enc.AddInt("http.status", l.Status)
	if l.GRPCStatus >= 0 {
		enc.AddInt("grpc.status", l.GRPCStatus)
	}
	addString(enc, "principal", bounded(l.Principal))
	enc.AddInt64("bytes_sent", l.Sent)
	enc.AddInt64("bytes_recv", l.Received)
	enc.AddFloat64("duration_ms", float64(l.end.Sub(l.Start).Microseconds())/1000)
	addString(enc, "policy", l.Policy)
	addString(enc, "reason", l.Reason)
	addString(enc, "attribute", l.Attribute)
	addString(enc, "dry_run", l.DryRun)
	addString(enc, "audit", l.Audit)
	addString(enc, "bypass", l.Bypass)
	if l.Err != nil {
		enc.AddString("error", errorText(l.Err))
	}
	return nil
}

// bounded is what callers wrote, within a length.
func bounded(text string) string {
	if len(text) > maxErrorText {
		return text[:maxErrorText] + "..."
	}
	return text
}

// Requested counts and logs the end of a request.
func (r *Recorder) Requested(q *Request) {
	now := r.options.Now()
	r.requests.count(q, now)
	r.countPolicies(q.Denied, q.Policy, q.Closest, q.DryRun, q.Audit)
	r.auditRequest(q)
	r.spanOfRequest(q, now)
	if r.options.Flows.Takes(flows.Requested) {
		event := q.flow(now)
		r.options.Flows.Add(&event)
	}
	line := zap.Inline(requestLine{q, now})
	if q.Denied {
		c := q.Connection
		k := kind{"request denied", c.Direction, c.Source.Addr.Addr(), c.Destination.Addr, q.Reason, q.Policy}
		r.metrics.denials.inc(c.Direction.String(), q.Reason)
		if entry := r.admit(zapcore.WarnLevel, k); entry != nil {
			entry.Write(line)
		}
		return
	}
	if !r.log.Core().Enabled(zapcore.InfoLevel) {
		return
	}
	if !r.access.Allow() {
		r.metrics.suppressed.Inc()
		return
	}
	if entry := r.log.Check(zapcore.InfoLevel, "request"); entry != nil {
		entry.Write(line)
	}
}

// countPolicies counts what the policies decided about a connection or request:
// those in force, on dry run, and for the record. One that only came closest
// has decided nothing.
func (r *Recorder) countPolicies(denied bool, policy string, closest bool, dryRun, audit string) {
	decision, otherwise := "allow", "dry_run_deny"
	if denied {
		decision, otherwise = "deny", "dry_run_allow"
	}
	if policy != "" && !closest {
		r.metrics.policies.inc(decision, policy)
	}
	if dryRun != "" {
		r.metrics.policies.inc(otherwise, dryRun)
		r.metrics.dryRuns.Inc()
	}
	if audit != "" {
		r.metrics.policies.inc("audit", audit)
	}
}

func newAccessLimiter() *rate.Limiter { return rate.NewLimiter(accessPerSecond, accessBurst) }

// LimitsAlone counts decisions about rate limits that one node made by itself
// since the store that it shares with others was away.
func (r *Recorder) LimitsAlone() { r.metrics.limitsAlone.Inc() }

// code is response_code of Istio's metrics: 0 where there was none.
func code(status int) string { return strconv.Itoa(status) }

// policyCounter has policies by their keys, the limit of series in mind.
func newPolicyCounter(registry prometheus.Registerer) *boundedCounter {
	c := newBoundedCounter(registry, "tacit_policy_decisions_total",
		"Connections and requests, by what a policy decided about them or, on dry run, would have.", "decision", "policy")
	c.limit, c.valid = maxPolicies, isPolicy
	return c
}

// maxPolicies bounds how many policies are counted apart.
const maxPolicies = 1000

// isPolicy reports whether a label is "NAMESPACE/NAME" of an object.
func isPolicy(s string) bool { return len(s) <= 400 }
