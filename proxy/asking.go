package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/internal/portions"
	"github.com/tacit-mesh/tacit/proxy/extauthz"
	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// ask has the provider of a CUSTOM policy decide. What it cannot be asked about
// is denied, unless the provider is declared to fail open.
func (x *exchange) ask(out *http.Decision, early http.Content) {
	to := x.decision.Provider
	if limit := visible(to); limit > 0 && len(early.Bytes) > limit {
		x.tooLarge(limit)
		return
	}
	answer, err := x.consult(to, early)
	switch {
	case err != nil && to.FailOpen:
		x.agreed()
	case err != nil:
		x.refuse(int(cmp.Or(to.StatusOnError, 403)), "provider_unavailable", fmt.Errorf("provider %s cannot be asked: %w", to.Name, err))
		x.refusal.Message = "access denied"
	case !answer.Allowed:
		x.denied(x.decision)
		x.reason = policy.ReasonAsk.String()
		x.refusal.Status = answer.Status
		x.refusal.Fields = answer.Headers
		x.refusal.Message = cmp.Or(answer.Body, x.refusal.Message)
	default:
		x.agreed()
		out.Edits.Fields = changed(x.fields, answer)
		out.Own = append(out.Own, answer.Remove...)
		for _, f := range slices.Concat(answer.Set, answer.Append) {
			out.Own = append(out.Own, f.Name)
		}
		out.Response = http.ResponseEdits{Set: unframed(answer.RespondSet), Add: unframed(answer.RespondAdd)}
	}
}

var (
	errAsking  = errors.New("too many questions about requests from this address, or to this pod, are under way")
	errOutside = errors.New("too many questions to providers outside of the mesh are under way: see whether these answer")
	errItself  = errors.New("the request is for the provider itself, which would have to be asked about the question as well: leave its pods out of the policy's selector, or its port out of the rules")
)

// consult asks a provider, within the pod's share and the provider's timeout, and
// out of the mesh within what the node's pods share. About what is for the
// provider itself it is not asked: that would be a request to ask about as well,
// and so on.
func (x *exchange) consult(to *model.Provider, early http.Content) (*extauthz.Answer, error) {
	c := x.requests.conn
	if serves(x.snapshot, networkOf(x.snapshot, c.pod), c.original, to.Host, to.Port) {
		return nil, errItself
	}
	ctx, cancel := context.WithTimeout(c.context(), to.Timeout)
	defer cancel()
	question := x.question(ctx, early) // may wait, and needs no slot for that
	slots, source := c.pod.share.asking, c.source().Addr()
	if !slots.take(ctx, source) {
		return nil, errAsking
	}
	defer slots.give(source)
	if question.As == "" && to.Protocol == model.ProviderHTTP {
		outside := c.proxy.outside
		if !outside.take(ctx, c.pod.UID) {
			return nil, errOutside
		}
		defer outside.give(c.pod.UID)
	}
	return c.proxy.providers.Ask(ctx, to, question)
}

// visible is how much of a body a provider sees; 0 is none of it.
func visible(to *model.Provider) int { return int(min(to.IncludeBody, maxBody)) }

// Wants implements http.Exchange. A provider that is to see whole bodies alone
// is not asked about longer ones, even if what it cannot be asked about passes.
func (x *exchange) Wants() int {
	wants := x.wants()
	x.seen = wants > 0
	return wants
}

func (x *exchange) wants() int {
	if x.refusal != nil || x.decision.Reason != policy.ReasonAsk || x.request.Method == "CONNECT" {
		return 0
	}
	to := x.decision.Provider
	limit := visible(to)
	if limit == 0 {
		return 0
	}
	wants := limit
	if !to.AllowPartial {
		wants++ // to know that there is more
	}
	text, _ := x.request.Header("content-length")
	switch length, err := strconv.ParseUint(text, 10, 63); {
	case err != nil: // there is none, or the request is refused anyway
	case length > uint64(limit) && !to.AllowPartial:
		x.tooLarge(limit)
		return 0
	default:
		wants = int(min(uint64(wants), length))
	}
	return wants
}

// Hold implements http.Exchange.
func (x *exchange) Hold(n int) bool {
	return x.room().Take(x.requests.conn.source().Addr(), n)
}

// Free implements http.Exchange.
func (x *exchange) Free(n int) { x.room().Give(x.requests.conn.source().Addr(), n) }

func (x *exchange) room() *portions.Portions[netip.Addr] {
	if x.seen {
		return x.requests.conn.pod.share.bodies
	}
	return x.requests.conn.pod.share.unseen
}

func (x *exchange) tooLarge(limit int) {
	x.refuse(413, "body_too_large", fmt.Errorf("the body is longer than the %d bytes that provider %s decides on", limit, x.decision.Provider.Name))
	x.refusal.Message = "the body is too large"
}

func (x *exchange) agreed() {
	x.requests.mu.Lock()
	defer x.requests.mu.Unlock()
	x.asked = x.decision.Policy
}

func (x *exchange) question(ctx context.Context, early http.Content) *extauthz.Question {
	c := x.requests.conn
	to := x.decision.Provider
	q := &extauthz.Question{
		As: c.proxy.callsAs(ctx, c.pod, to.Host, to.Port), ID: c.record.ID, Method: x.http.Method, Target: x.http.Path + withQuery(x.request.Query()), Host: x.http.Host,
		Protocol: version(x.request), Headers: x.fields,
		Source: c.source(), Destination: c.original, Principal: c.peer().String(), Local: c.pod.identity.String(),
	}
	if visible(to) > 0 {
		q.Body, q.Partial = early.Bytes, !early.Whole
	}
	return q
}

// framing fields and the host are not a provider's to change: they say where a
// request ends and whom it is for.
var framing = []string{"content-length", "transfer-encoding", "connection", "host", "upgrade", "te", "trailer"}

// changed is the header as the provider wants it; nil where that is as it came.
func changed(fields []http.Field, a *extauthz.Answer) []http.Field {
	if len(a.Set)+len(a.Append)+len(a.Remove) == 0 {
		return nil
	}
	is := func(name string) func(string) bool { return func(n string) bool { return policy.SameName(n, name) } }
	out := make([]http.Field, 0, len(fields)+len(a.Set)+len(a.Append))
	for _, f := range fields {
		replaced := slices.ContainsFunc(a.Set, func(s http.Field) bool { return policy.SameName(s.Name, f.Name) })
		removed := slices.ContainsFunc(a.Remove, is(f.Name))
		if replaced || removed {
			if !slices.ContainsFunc(framing, is(f.Name)) {
				continue
			}
		}
		out = append(out, f)
	}
	return append(out, unframed(slices.Concat(a.Set, a.Append))...)
}

// unframed leaves out what says where a message ends.
func unframed(fields []http.Field) []http.Field {
	return slices.DeleteFunc(fields, func(f http.Field) bool {
		return strings.HasPrefix(f.Name, ":") || slices.ContainsFunc(framing, func(name string) bool { return policy.SameName(name, f.Name) })
	})
}

// limit counts the request against its limits. All are counted, so that none
// depends on the order of the others.
func (x *exchange) limit() {
	for i := range x.limits {
		a := &x.limits[i]
		take := x.requests.proxy.limits.Take
		n := uint64(1)
		if a.Limit.Unit == model.LimitBytes { // counted when they have passed
			take, n = x.requests.proxy.limits.Charge, 0
		}
		o := take(x.requests.conn.context(), x.requests.proxy.countsAs(x.requests.conn.pod, a), a, n)
		if o.Alone {
			x.requests.proxy.Recorder.LimitsAlone()
		}
		switch {
		case o.Allowed:
		case a.DryRun:
			x.decision.DryRun = cmp.Or(x.decision.DryRun, a.Policy)
		case x.refusal == nil:
			x.refuse(429, "rate_limited", fmt.Errorf("more than rate limit %s allows", a.Policy))
			x.refusal.Message = "too many requests"
			seconds := max(1, int(math.Ceil(o.RetryAfter.Seconds())))
			x.refusal.Fields = []http.Field{{Name: "retry-after", Value: strconv.Itoa(seconds)}}
			x.decision.Policy, x.decision.Attribute = a.Policy, ""
		}
	}
}

// limited counts a pod's connection that is allowed against all limits of a
// unit. Of bytes none have passed yet.
func (p *Proxy) limited(ctx context.Context, pod *pod, d policy.Decision, r *policy.Request, unit model.LimitUnit) policy.Decision {
	limits := policy.Limits(nil, p.State.Snapshot(), r, unit)
	for i := range limits {
		a := &limits[i]
		take, n := p.limits.Take, uint64(1)
		if unit == model.LimitBytes {
			take, n = p.limits.Charge, 0
		}
		o := take(ctx, p.countsAs(pod, a), a, n)
		if o.Alone {
			p.Recorder.LimitsAlone()
		}
		switch {
		case o.Allowed:
		case a.DryRun:
			d.DryRun = cmp.Or(d.DryRun, a.Policy)
		case d.Allowed:
			d = policy.Decision{Policy: a.Policy, Reason: policy.ReasonLimited}
		}
	}
	return d
}
