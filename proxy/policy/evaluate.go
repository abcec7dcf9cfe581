package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Evaluate decides with the semantics of Istio's ambient mode, and denies what
// is unknown: before the first full list of policies, towards a workload that
// the snapshot does not have, and where the workload names a policy that was
// never seen. A DENY policy that matches comes before all others; then, where
// ALLOW policies cover the workload, one of them must match.
//
// The snapshot's version of the destination counts, not the request's, so
// that a live connection can be evaluated again with the same request.
func Evaluate(s *model.Snapshot, r *Request) Decision {
	e := newEvaluation(s, r)
	return e.evaluate(s)
}

// EvaluateConnection decides about a connection before its first request: it
// denies one on which no request could be allowed. On any other, each request
// is to be decided by Evaluate.
func EvaluateConnection(s *model.Snapshot, r *Request) Decision {
	e := newEvaluation(s, r)
	e.anyRequest = true
	return e.evaluate(s)
}

// tally counts twice: what is enforced, and what would be if the policies on
// dry run were enforced too.
type tally struct {
	enforced, all votes
	missing       string // key of a policy never seen
}

func (t *tally) add(p *model.Policy, o outcome) {
	t.all.add(p, o)
	if !p.DryRun {
		t.enforced.add(p, o)
	}
}

func (t *tally) decision(s *model.Snapshot) Decision {
	d := t.enforced.decision(s, t.missing)
	if all := t.all.decision(s, t.missing); all.Allowed != d.Allowed {
		d.DryRun = all.Policy
	}
	return d
}

// votes are the policies that matter, the first of each kind.
type votes struct {
	denied, allowed, closest, asked, audited *model.Policy
	deniedAt, closestAt                      outcome
	foreign                                  bool // the client, who is allowed by a policy or not at all
	unmatched                                bool // some ALLOW policy does not match
}

func (v *votes) wantsClosest() bool { return v.denied == nil && v.allowed == nil && v.unmatched }

func (v *votes) add(p *model.Policy, o outcome) {
	switch {
	case !o.matched && p.Action != model.ActionAllow:
	case p.Action == model.ActionAllow && o.matched:
		v.allowed = cmp.Or(v.allowed, p)
	case p.Action == model.ActionAllow:
		if v.closest == nil || o.progress > v.closestAt.progress {
			v.closest, v.closestAt = p, o
		}
	case p.Action == model.ActionAudit && p.Unknown == "":
		v.audited = cmp.Or(v.audited, p)
	case p.Action == model.ActionCustom && p.Unknown == "" && v.mayAsk(p):
		v.asked = cmp.Or(v.asked, p)
	case v.denied == nil:
		v.denied, v.deniedAt = p, o
	}
}

// mayAsk: as in Istio, one provider decides about a request; where policies
// name several, none does.
func (v *votes) mayAsk(p *model.Policy) bool {
	return p.Provider != nil && (v.asked == nil || v.asked.Provider.Name == p.Provider.Name)
}

func (v *votes) decision(s *model.Snapshot, missing string) Decision {
	d := v.verdict(s, missing)
	if v.audited != nil {
		d.Audit = s.PolicyKey(v.audited)
	}
	if d.Allowed && v.asked != nil {
		d.Allowed, d.Reason, d.Attribute = false, ReasonAsk, ""
		d.Policy, d.Provider = s.PolicyKey(v.asked), v.asked.Provider
	}
	return d
}

func (v *votes) verdict(s *model.Snapshot, missing string) Decision {
	switch {
	case v.denied != nil:
		return Decision{Reason: ReasonDenied, Policy: s.PolicyKey(v.denied), Attribute: v.deniedAt.name()}
	case missing != "":
		return Decision{Reason: ReasonMissingPolicy, Policy: missing}
	case v.allowed != nil:
		return Decision{Allowed: true, Reason: ReasonAllowed, Policy: s.PolicyKey(v.allowed)}
	case v.closest != nil:
		return Decision{Reason: ReasonNotAllowed, Policy: s.PolicyKey(v.closest), Attribute: v.closestAt.name()}
	}
	if v.foreign {
		return Decision{Reason: ReasonForeign}
	}
	return Decision{Allowed: true, Reason: ReasonNoPolicy}
}

// denies reports whether what is not known of the policy makes it match. An
// action that is none of the known ones is taken for DENY.
func denies(p *model.Policy) bool { return p.Action != model.ActionAllow }

// evaluation holds the facts of one decision.
type evaluation struct {
	request      *Request
	memo         *sync.Map
	anyRequest   bool // about all the requests that there may be
	workload     *model.Workload
	source       netip.Addr
	destination  netip.Addr
	labels       map[string]string
	labelsProven bool
	principal    [5]string // parts of the identity's principal
}

func newEvaluation(s *model.Snapshot, r *Request) evaluation {
	e := evaluation{request: r, memo: s.Memo(), source: plain(r.Source), destination: plain(r.Destination.Addr())}
	id := &r.Identity
	e.principal = [...]string{id.TrustDomain, "/ns/", id.Namespace, "/sa/", id.ServiceAccount}
	if r.Workload != nil {
		e.workload = s.Workload(r.Workload.UID)
	}
	if w := r.SourceWorkload; w != nil && !r.Identity.IsZero() && w.Identity() == r.Identity {
		e.labels, e.labelsProven = w.Labels, true
	}
	return e
}

func (e *evaluation) evaluate(s *model.Snapshot) Decision {
	if e.request.Revoked {
		return Decision{Reason: ReasonRevoked}
	}
	if !s.PoliciesReady() {
		return Decision{Reason: ReasonNotReady}
	}
	if e.workload == nil {
		return Decision{Reason: ReasonUnknownWorkload}
	}
	var t tally
	t.enforced.foreign, t.all.foreign = e.foreign(), e.foreign()
	for _, p := range s.GlobalPolicies() {
		e.add(&t, p)
	}
	for _, p := range s.NamespacePolicies(e.workload.Namespace) {
		e.add(&t, p)
	}
	for _, key := range e.workload.Policies {
		switch p, removed := s.Policy(key); {
		case p != nil:
			e.add(&t, p)
		case !removed:
			t.missing = cmp.Or(t.missing, key)
		}
	}
	e.closest(s, &t)
	return t.decision(s)
}

// foreign reports whether the client is of another trust domain: that the mesh
// federates with that one says who it is, not that it may come.
func (e *evaluation) foreign() bool {
	id := e.request.Identity
	return !id.IsZero() && id.TrustDomain != e.workload.TrustDomain
}

// add lets a policy vote that covers the destination's port.
func (e *evaluation) add(t *tally, p *model.Policy) {
	if !coversPort(p, e.request.Destination.Port()) {
		return
	}
	switch matched, allow := e.matches(p), p.Action == model.ActionAllow; {
	case matched && allow:
		t.add(p, outcome{matched: true})
	case matched:
		t.add(p, e.policy(p))
	case allow:
		t.all.unmatched = true
		t.enforced.unmatched = t.enforced.unmatched || !p.DryRun
	}
}

// closest finds the ALLOW policies that came closest, where that is asked for.
func (e *evaluation) closest(s *model.Snapshot, t *tally) {
	if !t.enforced.wantsClosest() && !t.all.wantsClosest() {
		return
	}
	for p := range covering(s, e.workload) {
		if p.Action == model.ActionAllow && coversPort(p, e.request.Destination.Port()) {
			t.add(p, e.policy(p))
		}
	}
}

func coversPort(p *model.Policy, port uint16) bool {
	return len(p.Ports) == 0 || slices.Contains(p.Ports, port)
}

// plain is the form in which prefixes contain an address: no IPv4 inside
// IPv6, and no zone.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// outcome is whether a policy matched, and where that was decided.
type outcome struct {
	matched             bool
	unknown             string // the part that was not understood, if that decided
	attribute           attribute
	unproven            bool // the connection carries nothing by which to judge the attribute
	rule, clause, match int
	progress            int // how much of the best rule matched
}

func (o outcome) name() string {
	if o.unknown != "" {
		return o.unknown
	}
	if o.unproven && o.attribute > lastLayer4 {
		return notHTTP[o.attribute]
	}
	return o.attribute.String()
}

// clauseWeight ranks one clause above all the attributes of a match.
const clauseWeight = int(lastAttribute) + 1

func (e *evaluation) policy(p *model.Policy) outcome {
	deny := denies(p)
	if p.Unknown != "" {
		return outcome{matched: deny, unknown: p.Unknown}
	}
	switch p.Action {
	case model.ActionAllow, model.ActionDeny:
	case model.ActionAudit, model.ActionCustom:
		if e.anyRequest {
			return outcome{}
		}
	case model.ActionAuthenticate, model.ActionLimit:
		return outcome{} // decide nothing by themselves
	default:
		return outcome{matched: true, unknown: "action"}
	}
	best := outcome{progress: -1}
	for i := range p.Rules {
		o := e.rule(&p.Rules[i], deny)
		o.rule = i
		if o.matched {
			return o
		}
		if o.progress > best.progress {
			best = o
		}
	}
	return best
}

func (e *evaluation) rule(r *model.Rule, deny bool) outcome {
	if r.Unknown != "" {
		return outcome{matched: deny, unknown: r.Unknown}
	}
	first := outcome{matched: true}
	for i := range r.Clauses {
		o := e.clause(&r.Clauses[i], deny)
		o.clause = i
		if !o.matched {
			o.progress += i * clauseWeight
			return o
		}
		if first.name() == "" {
			first = o
		}
	}
	return first
}

func (e *evaluation) clause(c *model.Clause, deny bool) outcome {
	if c.Unknown != "" {
		return outcome{matched: deny, unknown: c.Unknown}
	}
	if len(c.Matches) == 0 {
		return outcome{matched: true}
	}
	best := outcome{progress: -1}
	for i := range c.Matches {
		o := e.match(&c.Matches[i], deny)
		o.match = i
		if o.matched {
			return o
		}
		if o.progress > best.progress {
			best = o
		}
	}
	return best
}

func (e *evaluation) match(m *model.Match, deny bool) outcome {
	if m.Unknown != "" {
		return outcome{matched: deny, unknown: m.Unknown}
	}
	var o outcome
	last := lastLayer4
	if m.HTTP != nil {
		last = lastAttribute
	}
	for a := firstAttribute; a <= last; a++ {
		v := e.judge(m, a, deny)
		if v == absent {
			continue
		}
		if v == fails || v == unproven && !deny {
			o.attribute, o.unproven = a, v == unproven && e.request.HTTP == nil
			return o
		}
		o.progress++
		if o.attribute == noAttribute {
			o.attribute, o.unproven = a, v == unproven && e.request.HTTP == nil
		}
	}
	o.matched = o.attribute != noAttribute
	return o
}
