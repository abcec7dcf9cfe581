package build

import (
	"cmp"
	"fmt"
	"strconv"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// dryRunAnnotations are Istio's and our own; any of them will do.
var dryRunAnnotations = [...]string{"istio.io/dry-run", "tacit.mesh/dry-run"}

// authorization translates one AuthorizationPolicy and attaches it to the
// workloads that it selects.
func (b *policyBuilder) authorization(obj *securityv1.AuthorizationPolicy) {
	st := PolicyStatus{
		Kind: "AuthorizationPolicy", Namespace: obj.Namespace, Name: obj.Name,
		Generation: obj.Generation, Layer: layer4,
	}
	if p := b.translate(obj, &st); p != nil {
		b.policies = append(b.policies, p)
		st.Enforced = !p.DryRun
		b.cover(p, &st, func(w *PolicyTarget) bool { return b.selects(obj.Namespace, obj.Spec.Selector, w) })
	}
	b.statuses = append(b.statuses, st)
}

// translate returns nil for a policy that cannot be enforced at layer 4 at
// all; the status then says why.
func (b *policyBuilder) translate(obj *securityv1.AuthorizationPolicy, st *PolicyStatus) *model.Policy {
	spec := &obj.Spec
	if spec.TargetRef != nil || len(spec.TargetRefs) > 0 {
		st.say("spec.targetRefs: not enforced: a policy that targets a gateway or a service takes a proxy of its own at layer 7; select workloads by labels instead")
		return nil
	}
	p := &model.Policy{
		Name: obj.Name, Namespace: obj.Namespace,
		Scope: b.scope(obj), DryRun: dryRun(obj.Annotations, st),
	}
	switch spec.Action {
	case securityv1beta1.AuthorizationPolicy_ALLOW:
		p.Action = model.ActionAllow
	case securityv1beta1.AuthorizationPolicy_DENY:
		p.Action = model.ActionDeny
	case securityv1beta1.AuthorizationPolicy_AUDIT, securityv1beta1.AuthorizationPolicy_CUSTOM:
		st.say("spec.action: not enforced: %s is not supported at layer 4", spec.Action)
		return nil
	default:
		p.Action = model.ActionDeny
		p.Unknown = fmt.Sprintf("spec.action: %d", spec.Action)
		st.say("spec.action: %d is not known: every connection is denied", spec.Action)
	}
	for i, in := range spec.Rules {
		r := ruleReader{builder: b, status: st, namespace: obj.Namespace, action: p.Action}
		if rule, ok := r.read(fmt.Sprintf("spec.rules[%d]", i), in); ok {
			p.Rules = append(p.Rules, rule)
		}
	}
	if p.DryRun {
		st.say("dry run: decides nothing")
	}
	return p
}

// scope: a selector without labels is none.
func (b *policyBuilder) scope(obj *securityv1.AuthorizationPolicy) model.PolicyScope {
	switch {
	case len(obj.Spec.GetSelector().GetMatchLabels()) > 0:
		return model.ScopeSelector
	case obj.Namespace == b.root:
		return model.ScopeGlobal
	}
	return model.ScopeNamespace
}

func dryRun(annotations map[string]string, st *PolicyStatus) bool {
	dry := false
	for _, name := range dryRunAnnotations {
		value, ok := annotations[name]
		if !ok {
			continue
		}
		on, err := strconv.ParseBool(value)
		if err != nil {
			st.say("metadata.annotations[%s]: %q is neither true nor false: taken for false", name, value)
		}
		dry = dry || on
	}
	return dry
}

// ruleReader translates one rule of an AuthorizationPolicy.
type ruleReader struct {
	builder   *policyBuilder
	status    *PolicyStatus
	namespace string // of the policy
	action    model.Action
	http      bool // the rule has attributes of HTTP
}

// read returns false for a rule that can never match: an ALLOW rule with
// attributes of HTTP. Of a DENY rule the attributes of layer 4 remain, so it
// denies more than it says. (Istio, "Authorization for TCP traffic".)
func (r *ruleReader) read(path string, in *securityv1beta1.Rule) (model.Rule, bool) {
	if in == nil {
		r.status.say("%s: empty: counts as unknown", path)
		return model.Rule{Unknown: path + ": empty"}, true
	}
	var rule model.Rule
	add := func(matches []model.Match, anything bool) {
		if len(matches) > 0 && !anything {
			rule.Clauses = append(rule.Clauses, model.Clause{Matches: matches})
		}
	}
	add(r.from(path, in.From))
	add(r.to(path, in.To))
	for i, cond := range in.When {
		m := r.match(fmt.Sprintf("%s.when[%d]", path, i))
		m.condition(cond)
		match, anything := m.done()
		add([]model.Match{match}, anything)
	}
	return rule, !(r.http && r.action == model.ActionAllow)
}

// from returns the alternatives, and whether one of them is left without any
// attribute of layer 4, so that the clause is no restriction.
func (r *ruleReader) from(path string, froms []*securityv1beta1.Rule_From) (matches []model.Match, anything bool) {
	for i, from := range froms {
		m := r.match(fmt.Sprintf("%s.from[%d].source", path, i))
		m.source(from.GetSource())
		match, always := m.done()
		matches, anything = append(matches, match), anything || always
	}
	return matches, anything
}

func (r *ruleReader) to(path string, tos []*securityv1beta1.Rule_To) (matches []model.Match, anything bool) {
	for i, to := range tos {
		m := r.match(fmt.Sprintf("%s.to[%d].operation", path, i))
		m.operation(to.GetOperation())
		match, always := m.done()
		matches, anything = append(matches, match), anything || always
	}
	return matches, anything
}

func (r *ruleReader) match(path string) *matchReader { return &matchReader{ruleReader: r, path: path} }

// matchReader translates one source, operation or condition.
type matchReader struct {
	*ruleReader
	path        string
	out         model.Match
	known, left int // attributes of layer 4, and those of HTTP that are left out
	never       bool
}

// done also says whether the match is always true, because it had attributes
// of HTTP alone.
func (m *matchReader) done() (model.Match, bool) {
	switch {
	case m.out.Unknown != "":
	case m.never:
		return model.Match{}, false // without attributes: never matches
	case m.known == 0 && m.left == 0:
		m.invalid("", "no attribute is given")
	}
	return m.out, m.known == 0 && m.left > 0 && m.out.Unknown == ""
}

func (m *matchReader) at(field string) string {
	if field == "" {
		return m.path
	}
	return m.path + "." + field
}

func (m *matchReader) invalid(field, format string, args ...any) {
	text := m.at(field) + ": " + fmt.Sprintf(format, args...)
	m.out.Unknown = cmp.Or(m.out.Unknown, text)
	if m.action == model.ActionAllow {
		m.status.say("%s: this alternative never matches", text)
	} else {
		m.status.say("%s: this alternative matches always", text)
	}
}

// leaveOut notes an attribute that only HTTP has.
func (m *matchReader) leaveOut(field string) {
	m.left++
	m.http = true
	if m.action == model.ActionAllow {
		m.status.say("%s: an attribute of HTTP: at layer 4 this ALLOW rule never matches", m.at(field))
	} else {
		m.status.say("%s: an attribute of HTTP: at layer 4 this DENY rule matches without it, which denies more", m.at(field))
	}
}
