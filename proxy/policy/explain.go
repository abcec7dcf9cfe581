package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Step is what one policy had to say about a request.
type Step struct {
	Policy  string `json:"policy"`
	Action  string `json:"action,omitempty"` // as in an AuthorizationPolicy, or "AUTHENTICATE" or "LIMIT"
	Scope   string `json:"scope,omitempty"`  // "mesh", "namespace" or "workload"
	DryRun  bool   `json:"dryRun,omitempty"`
	Matched bool   `json:"matched"`
	// Unknown says that the policy as a whole could not be understood.
	Unknown bool `json:"unknown,omitempty"`
	// Missing says that the workload names the policy and that it was never
	// seen; Removed, that the control plane took it away.
	Missing bool `json:"missing,omitempty"`
	Removed bool `json:"removed,omitempty"`
	// Rule is the index of the rule that matched or came closest.
	Rule int `json:"rule"`
	// Attribute is the first that failed in it, or that decided the match;
	// empty where the rule has none. Wanted and Actual are its values in
	// words; both are empty for a part that could not be understood.
	Attribute string `json:"attribute,omitempty"`
	Wanted    string `json:"wanted,omitempty"`
	Actual    string `json:"actual,omitempty"`
}

// Explain lists every policy that covers the request's destination, in the
// order in which [Evaluate] meets them. It is empty where Evaluate denies
// before it looks at policies.
func Explain(s *model.Snapshot, r *Request) []Step {
	e := newEvaluation(s, r)
	if !s.PoliciesReady() || e.workload == nil {
		return nil
	}
	var steps []Step
	add := func(p *model.Policy) {
		if coversPort(p, r.Destination.Port()) {
			steps = append(steps, e.step(p))
		}
	}
	for _, p := range s.GlobalPolicies() {
		add(p)
	}
	for _, p := range s.NamespacePolicies(e.workload.Namespace) {
		add(p)
	}
	for _, key := range e.workload.Policies {
		p, removed := s.Policy(key)
		if p == nil {
			steps = append(steps, Step{Policy: key, Missing: !removed, Removed: removed})
			continue
		}
		add(p)
	}
	return steps
}

var actions = [...]string{
	model.ActionAllow: "ALLOW", model.ActionDeny: "DENY", model.ActionAudit: "AUDIT", model.ActionCustom: "CUSTOM",
	model.ActionAuthenticate: "AUTHENTICATE", model.ActionLimit: "LIMIT",
}

func (e *evaluation) step(p *model.Policy) Step {
	o := e.policy(p)
	step := Step{
		Policy: p.Key(), Action: "DENY", Scope: "mesh", DryRun: p.DryRun || e.workload != nil && e.bypass() != "" && !holdsInBypass(p),
		Matched: o.matched, Unknown: p.Unknown != "", Rule: o.rule, Attribute: o.name(),
	}
	if int(p.Action) < len(actions) {
		step.Action = actions[p.Action]
	}
	switch p.Scope {
	case model.ScopeNamespace:
		step.Scope = "namespace"
	case model.ScopeSelector:
		step.Scope = "workload"
	case model.ScopeGlobal:
	}
	if o.unknown == "" && o.attribute != noAttribute {
		e.describe(&step, &p.Rules[o.rule].Clauses[o.clause].Matches[o.match], o.attribute)
	}
	return step
}

// String is the step in one line for people.
func (s Step) String() string {
	var b strings.Builder
	b.WriteString(s.Policy)
	if s.Action != "" {
		fmt.Fprintf(&b, " (%s, %s", s.Action, s.Scope)
		if s.DryRun {
			b.WriteString(", dry run")
		}
		b.WriteString(")")
	}
	switch {
	case s.Missing:
		b.WriteString(": named by the workload, but never received")
	case s.Removed:
		b.WriteString(": removed by the control plane, skipped")
	case s.Matched && s.Attribute == "":
		fmt.Fprintf(&b, ": matched by rule %d", s.Rule)
	case s.Matched && s.Wanted == "":
		fmt.Fprintf(&b, ": matched, because it has a part that is not understood (%s)", s.Attribute)
	case s.Matched:
		fmt.Fprintf(&b, ": matched by rule %d: %s: wanted %s, got %s", s.Rule, s.Attribute, s.Wanted, s.Actual)
	case s.Attribute == "":
		b.WriteString(": no rule can match")
	case s.Wanted == "":
		fmt.Fprintf(&b, ": not matched, because it has a part that is not understood (%s)", s.Attribute)
	default:
		fmt.Fprintf(&b, ": not matched; closest rule %d: %s: wanted %s, got %s", s.Rule, s.Attribute, s.Wanted, s.Actual)
	}
	return b.String()
}

// describe puts the attribute's values into words.
func (e *evaluation) describe(step *Step, m *model.Match, a attribute) {
	id := e.request.Identity
	switch a {
	case principals:
		step.Wanted, step.Actual = oneOf(m.Principals), e.proven(id.Principal())
	case notPrincipals:
		step.Wanted, step.Actual = noneOf(m.NotPrincipals), e.proven(id.Principal())
	case namespaces:
		step.Wanted, step.Actual = oneOf(m.Namespaces), e.proven(id.Namespace)
	case notNamespaces:
		step.Wanted, step.Actual = noneOf(m.NotNamespaces), e.proven(id.Namespace)
	case serviceAccounts:
		step.Wanted, step.Actual = oneOf(accounts(m.ServiceAccounts)), e.proven(id.Namespace+"/"+id.ServiceAccount)
	case notServiceAccounts:
		step.Wanted, step.Actual = noneOf(accounts(m.NotServiceAccounts)), e.proven(id.Namespace+"/"+id.ServiceAccount)
	case sourceIPs:
		step.Wanted, step.Actual = oneOf(m.SourceIPs), known(e.source)
	case notSourceIPs:
		step.Wanted, step.Actual = noneOf(m.NotSourceIPs), known(e.source)
	case sourceLabels:
		e.describeLabels(step, m.SourceLabels, true)
	case notSourceLabels:
		e.describeLabels(step, m.NotSourceLabels, false)
	case destinationPorts:
		step.Wanted, step.Actual = oneOf(m.DestinationPorts), fmt.Sprint(e.request.Destination.Port())
	case notDestinationPorts:
		step.Wanted, step.Actual = noneOf(m.NotDestinationPorts), fmt.Sprint(e.request.Destination.Port())
	case destinationIPs:
		step.Wanted, step.Actual = oneOf(m.DestinationIPs), known(e.destination)
	case notDestinationIPs:
		step.Wanted, step.Actual = noneOf(m.NotDestinationIPs), known(e.destination)
	case times:
		step.Wanted, step.Actual = oneOf(windows(m.Times)), e.request.Time.UTC().Format(time.TimeOnly)
	case notTimes:
		step.Wanted, step.Actual = noneOf(windows(m.NotTimes)), e.request.Time.UTC().Format(time.TimeOnly)
	case noAttribute:
	default:
		e.describeRequest(step, m.HTTP, a)
	}
}

// describeLabels picks the key that decided: the one that failed, else the
// first that is not known, else the first.
func (e *evaluation) describeLabels(step *Step, keys []model.LabelMatch, wanted bool) {
	decisive := keys[0]
	switch e.labelled(keys, wanted) {
	case fails:
		decisive = e.firstLabel(keys, wanted, fails)
	case unproven:
		decisive = e.firstLabel(keys, wanted, unproven)
	case fits, absent:
	}
	step.Attribute = "source.labels[" + decisive.Key + "]"
	step.Wanted = oneOf(decisive.Values)
	if !wanted {
		step.Wanted = noneOf(decisive.Values)
	}
	value, ok := e.labels[decisive.Key]
	switch {
	case !e.labelsProven:
		step.Actual = "unknown (no workload at the source address has the caller's identity)"
	case !ok:
		step.Actual = "unknown (the control plane has not sent this label)"
	default:
		step.Actual = fmt.Sprintf("%q", value)
	}
}

func (e *evaluation) firstLabel(keys []model.LabelMatch, wanted bool, v verdict) model.LabelMatch {
	for i := range keys {
		if e.labelled(keys[i:i+1], wanted) == v {
			return keys[i]
		}
	}
	return keys[0]
}

func (e *evaluation) proven(s string) string {
	if e.request.Identity.IsZero() {
		return "no identity (plaintext)"
	}
	return s
}

func known(a netip.Addr) string {
	if !a.IsValid() {
		return "unknown"
	}
	return a.String()
}

func oneOf[T any](values []T) string {
	if len(values) == 1 {
		return fmt.Sprint(values[0])
	}
	return "one of " + join(values)
}

func noneOf[T any](values []T) string {
	if len(values) == 1 {
		return "not " + fmt.Sprint(values[0])
	}
	return "none of " + join(values)
}

func join[T any](values []T) string {
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, v)
	}
	return b.String()
}

func accounts(list []model.ServiceAccount) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.Namespace+"/"+a.Name)
	}
	return out
}

func windows(list []model.TimeWindow) []string {
	var out []string
	for _, w := range list {
		out = append(out, clock(w.First)+"-"+clock(w.Last))
	}
	return out
}

func clock(d time.Duration) string {
	return time.Time{}.Add(d).Format(time.TimeOnly)
}
