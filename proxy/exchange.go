package proxy

import (
	"errors"
	"time"

	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/jwt"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/proxy/tracing"
	"github.com/tacit-mesh/tacit/xds/model"
)

// exchange is one request and its response: what was decided on it, and what
// is to be told of it.
type exchange struct {
	requests *requests
	request  *http.Request
	live     *http.Live
	began    time.Time
	span     *tracing.Span // nil if there is none to be made

	facts    policy.Request
	http     policy.HTTPRequest
	fields   []http.Field // of the request, as everybody sees them
	tokens   jwt.Result
	snapshot *model.Snapshot
	decision policy.Decision
	limits   []policy.AppliedLimit
	refusal  *http.Refusal // what is settled already
	reason   string        // of a refusal that no policy decided
	err      error
	seen     bool // the decision looks at the body

	// Guarded by the requests' mu.
	asked   string // policy whose provider has agreed
	bypass  string // without which it would have been denied, and which lets it live to its end
	revoked *policy.Decision

	bytes exchangeBytes
}

// begin decides, and enters the exchange into the live ones unless it is refused:
// whichever of request and policy comes first, one sees the other.
func (x *exchange) begin() {
	for {
		s := x.requests.proxy.State.Snapshot()
		x.attempt(s)
		if x.requests.proxy.State.Snapshot() == s {
			return
		}
	}
}

// attempt decides in one snapshot. A review may look at an earlier attempt, and
// at this one only once it is decided.
func (x *exchange) attempt(s *model.Snapshot) {
	r := x.requests
	r.mu.Lock()
	defer r.mu.Unlock()
	x.gather(s)
	x.decide()
	if x.refusal != nil {
		delete(r.live, x)
		return
	}
	r.live[x] = struct{}{}
}

// refused takes a request out of what is reviewed: nothing of it goes any
// further, and a change of policy is not to cut off the answer.
func (x *exchange) refused() {
	x.requests.mu.Lock()
	defer x.requests.mu.Unlock()
	delete(x.requests.live, x)
}

// gather finds out what a decision is about. Called with the requests' mu held.
func (x *exchange) gather(s *model.Snapshot) {
	r := x.requests
	now := time.Now()
	x.snapshot, x.refusal = s, nil
	x.decision, x.limits, x.bypass = policy.Decision{}, nil, ""
	x.facts, _ = r.conn.facts(s, now)
	x.facts.Bypass = "" // one that is over lets no new request in
	if x.fields = x.request.Fields; r.proxy.TellIdentity {
		x.fields = identified(x.fields, r.conn.peer(), r.conn.pod.identity)
	}
	x.http = policy.HTTPRequest{Method: x.request.Method, Host: x.request.Host, Headers: x.fields}
	x.facts.HTTP = &x.http
	if x.facts.Workload == nil {
		return // which Evaluate denies
	}
	path, err := x.path(x.facts.Workload.Paths)
	if err != nil {
		x.refuse(400, "bad_request", err)
		return
	}
	x.http.Path = path
	x.tokens = r.proxy.tokens.Authenticate(s, x.facts.Workload, r.conn.original.Port(), x.fields, x.request.Query(), now)
	x.http.Claims = x.tokens.Claims
}

func (x *exchange) path(mode model.PathNormalization) (string, error) {
	if x.request.Method == "CONNECT" {
		return "", nil
	}
	return policy.NormalizePath(mode, x.request.Path())
}

func (x *exchange) refuse(status int, reason string, err error) {
	x.refusal = &http.Refusal{Status: status, Message: err.Error()}
	x.reason, x.err = reason, errRefused(status, err)
}

// noRoom refuses for want of room. It is nothing that a policy which allows the
// request has done.
func (x *exchange) noRoom() {
	if x.decision.Allowed {
		x.decision.Policy, x.decision.Attribute = "", ""
	}
	x.refusal = http.NoRoom()
	x.reason, x.err = "too_many_bodies", errRefused(x.refusal.Status, http.ErrNoRoom)
}

// decide settles what it can without asking anybody. Called with the requests'
// mu held.
func (x *exchange) decide() {
	if x.refusal != nil {
		return
	}
	if x.tokens.Outcome == jwt.Refused && !underBypass(x.facts) {
		x.refuse(401, "invalid_token", errors.New("the token is not accepted: "+x.tokens.Reason))
		x.refusal.Message = "the token is not accepted"
		x.refusal.Fields = []http.Field{{Name: "www-authenticate", Value: jwt.Challenge}}
		x.decision.Policy = x.tokens.Policy
		return
	}
	d := policy.Evaluate(x.snapshot, &x.facts)
	if d.Allowed && x.http.Method == "CONNECT" && !x.namesConnect(d) {
		x.refuse(403, "connect", errNoConnect)
		return
	}
	x.decision = d
	if d.Reason == policy.ReasonBypassed {
		x.bypass = d.Bypass
	}
	if !d.Allowed && d.Reason != policy.ReasonAsk {
		x.denied(d)
		return
	}
	x.limits = policy.Limits(nil, x.snapshot, &x.facts, model.LimitRequests)
	x.limits = policy.Limits(x.limits, x.snapshot, &x.facts, model.LimitBytes)
}

// namesConnect reports whether the request is allowed for its method alone:
// with any other it would not be.
func (x *exchange) namesConnect(d policy.Decision) bool {
	other := x.http
	other.Method = "-"
	facts := x.facts
	facts.HTTP = &other
	return d.Reason == policy.ReasonAllowed && !policy.Evaluate(x.snapshot, &facts).Allowed
}

func (x *exchange) denied(d policy.Decision) {
	x.refusal = &http.Refusal{Status: 403, Message: "access denied"}
	x.reason, x.err = d.Reason.String(), denied{Decision: d}
	if x.requests.proxy.TellPolicies && d.Policy != "" {
		x.refusal.Fields = []http.Field{{Name: "tacit-policy", Value: d.Policy}}
	}
}

// Ready implements http.Exchange.
func (x *exchange) Ready() bool {
	if x.refusal != nil {
		return true
	}
	if x.decision.Reason == policy.ReasonAsk {
		return false
	}
	for i := range x.limits {
		if x.limits[i].Store != nil {
			return false
		}
	}
	return true
}

// Decision implements http.Exchange.
func (x *exchange) Decision(early http.Content) http.Decision {
	var out http.Decision
	if early.NoRoom && x.refusal == nil {
		x.noRoom()
	}
	if x.refusal == nil && x.decision.Reason == policy.ReasonAsk {
		x.ask(&out, early)
	}
	if x.refusal == nil {
		x.limit()
	}
	if out.Refusal = x.refusal; out.Refusal != nil {
		x.refused()
		return out
	}
	x.countBytes()
	x.edit(&out.Edits)
	out.Own = append(out.Own, x.tokens.Own()...)
	return out
}

// edit forwards the path in the form that was decided on, tokens and claims as
// their rules say, and the caller's identity where that is wanted.
func (x *exchange) edit(e *http.Edits) {
	query := x.request.Query()
	if e.Fields == nil && (x.requests.proxy.TellIdentity || x.span != nil) {
		e.Fields = x.fields
	}
	if x.span != nil {
		e.Fields = below(e.Fields, x.span)
	}
	if x.tokens.Changes() {
		fields := e.Fields
		if fields == nil {
			fields = x.fields
		}
		var left string
		e.Fields, left = x.tokens.Apply(fields, query)
		if left != query {
			e.Target = x.http.Path + withQuery(left)
		}
		query = left
	}
	if x.request.Method != "CONNECT" && x.http.Path != x.request.Path() && e.Target == "" {
		e.Target = x.http.Path + withQuery(query)
	}
}

func withQuery(query string) string {
	if query == "" {
		return ""
	}
	return "?" + query
}

// review decides again about a request under way. Called with the requests' mu
// held.
func (x *exchange) review(s *model.Snapshot, facts policy.Request) {
	facts.HTTP, facts.Bypass = &x.http, x.bypass
	d := policy.Evaluate(s, &facts)
	if d.Reason == policy.ReasonBypassed {
		x.bypass = d.Bypass
	}
	if d.Allowed || d.Reason == policy.ReasonAsk && (x.asked == "" || x.asked == d.Policy) {
		return
	}
	if x.revoked == nil && x.live.Abort != nil {
		x.revoked = &d
		x.live.Abort()
	}
}

// End implements http.Exchange.
func (x *exchange) End(result http.Result) {
	r := x.requests
	r.mu.Lock()
	delete(r.live, x)
	revoked := x.revoked
	r.mu.Unlock()
	x.countLast(result.Sent + result.Received)
	if errors.Is(result.Err, http.ErrNoRoom) { // answered beside the decision, whatever that was
		x.noRoom()
	}
	q := x.record(result)
	if revoked != nil {
		q.Denied, q.Err = true, denied{Decision: *revoked}
		q.Policy, q.Reason, q.Attribute = revoked.Policy, revoked.Reason.String(), revoked.Attribute
		q.Closest = revoked.Reason == policy.ReasonNotAllowed
	}
	r.conn.requested(r.proxy.Recorder, q)
}

func (x *exchange) record(result http.Result) *telemetry.Request {
	q := &telemetry.Request{
		Protocol: "http", Version: version(x.request), Start: x.began,
		Method: x.request.Method, Host: x.request.Host, Path: x.http.Path, Principal: x.http.Claims.Principal(),
		Status: result.Status, GRPCStatus: result.GRPCStatus,
		Policy: x.decision.Policy, Reason: x.decision.Reason.String(), Attribute: x.decision.Attribute,
		DryRun: x.decision.DryRun, Audit: x.decision.Audit, Bypass: x.decision.Bypass, Closest: x.decision.Reason == policy.ReasonNotAllowed,
		Err: result.Err, Span: x.span, Sent: result.Sent, Received: result.Received,
	}
	if x.request.GRPC() {
		q.Protocol = "grpc"
	}
	if x.refusal != nil {
		q.Denied, q.Err, q.Reason = true, x.err, x.reason
	}
	return q
}

func version(r *http.Request) string {
	switch {
	case r.Protocol == http.HTTP2:
		return "HTTP/2"
	case r.Minor == 0:
		return "HTTP/1.0"
	}
	return "HTTP/1.1"
}

// requested tells of a request, with the connection as it is at that time.
func (c *Connection) requested(recorder *telemetry.Recorder, q *telemetry.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.Connection = &c.record
	recorder.Requested(q)
}

func (c *Connection) malformed(recorder *telemetry.Recorder, status int, err error) {
	c.requested(recorder, &telemetry.Request{
		Protocol: "http", Start: time.Now(), Status: status, GRPCStatus: -1,
		Denied: true, Reason: "bad_request", Err: err,
	})
}
