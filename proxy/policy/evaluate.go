package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Evaluate decides with the semantics of Istio's ambient mode, and denies what
// is unknown: before the first full list of policies, towards a workload that
// the snapshot does not have, and where the workload names a policy that was
// never seen. A DENY policy that matches comes before all others; then, where
// ALLOW policies cover the workload, one of them must match. Under a Bypass
// policies deny nothing, revoked identities apart, and what they would have
// denied is told.
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
	bypass        string // under which only revocations are enforced
}

func (t *tally) add(p *model.Policy, o outcome) {
	t.all.add(p, o)
	if !p.DryRun && (t.bypass == "" || holdsInBypass(p)) {
		t.enforced.add(p, o)
	}
}

// holdsInBypass: a bypass is for what was written wrong or cannot be kept up,
// and a revocation for what was stolen.
func holdsInBypass(p *model.Policy) bool {
	return p.Action == model.ActionAudit && p.Unknown == "" || model.MadeOfRevokedIdentity(p.Name)
}

func (t *tally) decision(s *model.Snapshot) Decision {
	if t.bypass != "" {
		return t.bypassed(s)
	}
	d := t.enforced.decision(s, t.missing)
	if all := t.all.decision(s, t.missing); all.Allowed != d.Allowed {
		d.DryRun = all.Policy
	}
	return d
}

func (t *tally) bypassed(s *model.Snapshot) Decision {
	t.enforced.foreign = false
	d := t.enforced.decision(s, "")
	all := t.all.decision(s, t.missing)
	switch {
	case !d.Allowed:
		return d
	case all.Allowed:
		all.Audit = d.Audit
		return all
	}
	return Decision{
		Allowed: true, Reason: ReasonBypassed, Bypass: t.bypass, Attribute: all.Attribute, Audit: d.Audit,
		DryRun: cmp.Or(all.Policy, all.Reason.String()),
	}
}

// votes are the policies that matter, the first of each kind.
type votes struct {
	denied, allowed, closest, asked, audited *model.Policy
	deniedAt, closestAt                      outcome
	foreign                                  bool // the client, who is allowed by a policy or not at all
}

// open: the ALLOW policy that came closest matters.
func (v *votes) open() bool { return v.denied == nil && v.allowed == nil }

// placed: among policies of which nothing fits, the first came closest.
func (v *votes) placed() bool { return v.closest != nil && v.closestAt.progress >= 0 }

// heard: one more match of the policy changes nothing.
func (v *votes) heard(p *model.Policy) bool {
	switch {
	case p.Action == model.ActionAllow:
		return v.allowed != nil
	case p.Action == model.ActionAudit && p.Unknown == "":
		return v.audited != nil
	}
	return p.Action == model.ActionDeny && v.denied != nil
}

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
	anyRequest   bool // about all the requests that there may be
	workload     *model.Workload
	source       netip.Addr
	destination  netip.Addr
	labels       map[string]string
	labelsProven bool
	principal    [5]string // parts of the identity's principal
}

func newEvaluation(s *model.Snapshot, r *Request) evaluation {
	e := evaluation{request: r, source: plain(r.Source), destination: plain(r.Destination.Addr())}
	id := &r.Identity
	e.principal = [...]string{id.TrustDomain, "/ns/", id.Namespace, "/sa/", id.ServiceAccount}
	if r.Workload != nil {
		e.workload = s.Workload(r.Workload.UID)
	}
	if w := r.SourceWorkload; w != nil && !r.Identity.IsZero() && w.Is(r.Identity) {
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
	covers := covers(s, e.workload)
	t := tally{bypass: e.bypass()}
	t.enforced.foreign, t.all.foreign = e.foreign(), e.foreign()
	for _, c := range covers {
		e.vote(&t, c)
		t.missing = cmp.Or(t.missing, c.missing)
	}
	e.closest(&t, covers)
	return t.decision(s)
}

// bypass is the one that is in force for the workload or, for a connection that
// one has let in, was when it began.
func (e *evaluation) bypass() string { return cmp.Or(e.workload.Bypass, e.request.Bypass) }

// foreign reports whether the client is of another trust domain: that the mesh
// federates with that one says who it is, not that it may come.
func (e *evaluation) foreign() bool {
	id := e.request.Identity
	return !id.IsZero() && !e.workload.InTrustDomain(id.TrustDomain)
}

// vote lets the policies vote that match.
func (e *evaluation) vote(t *tally, c *covered) {
	var space [fewRules / 64]uint64
	candidates := c.index.marks(&space)
	c.index.match.find(candidates, e)
	var matched *model.Policy
	candidates.each(func(n int) {
		r := &c.index.rules[n]
		if r.policy == matched || r.allow && t.enforced.allowed != nil || !e.indexedMatches(r) {
			return
		}
		matched = r.policy
		switch {
		case t.enforced.heard(matched):
		case r.allow:
			t.add(matched, outcome{matched: true})
		default:
			t.add(matched, e.policy(matched))
		}
	})
}

// indexedMatches is whether a rule matches, of a policy that covers the
// destination's port.
func (e *evaluation) indexedMatches(r *indexedRule) bool {
	switch {
	case !coversPort(r.policy, e.request.Destination.Port()):
		return false
	case r.rule == nil:
		return true
	case r.policy.Action > model.ActionDeny && e.anyRequest:
		return false
	}
	return e.ruleMatches(r.rule, r.given, !r.allow)
}

// closest finds the ALLOW policies that came closest, where that is asked for:
// first among those of which something fits, then, if there is none, of all.
func (e *evaluation) closest(t *tally, covers *scopes) {
	if !t.enforced.open() && !t.all.open() {
		return
	}
	for _, c := range covers {
		e.near(t, &c.index)
	}
	for _, c := range covers {
		for _, p := range c.index.allows {
			if t.enforced.placed() && t.all.placed() {
				return
			}
			if coversPort(p, e.request.Destination.Port()) {
				t.add(p, e.policy(p))
			}
		}
	}
}

func (e *evaluation) near(t *tally, x *index) {
	var space [fewRules / 64]uint64
	candidates := x.marks(&space)
	x.near.find(candidates, e)
	candidates.each(func(n int) {
		r := &x.rules[n]
		if !coversPort(r.policy, e.request.Destination.Port()) {
			return
		}
		o := e.rule(r.rule, false)
		if o.rule = r.number; !o.matched && o.progress > 0 {
			t.add(r.policy, o)
		}
	})
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
