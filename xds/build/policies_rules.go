package build

import (
	"cmp"
	"fmt"
	"slices"
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
	spec := &obj.Spec
	st := newStatus("AuthorizationPolicy", &obj.ObjectMeta)
	refs := spec.TargetRefs
	if spec.TargetRef != nil {
		refs = append(slices.Clip(refs), spec.TargetRef)
	}
	if t, ours := b.scope(obj.Namespace, istioSelector(spec.Selector), refs, &st); ours {
		p := &model.Policy{
			Name: obj.Name, Namespace: obj.Namespace, Scope: t.scope, Ports: t.ports, DryRun: dryRun(obj.Annotations, &st),
		}
		b.action(p, spec, &st)
		p.Rules = b.rules(p, annotatedRules(obj.Annotations, spec.Rules, &st), &st)
		b.publish(p, t, &st)
	}
	b.statuses = append(b.statuses, st)
}

func (b *policyBuilder) rules(p *model.Policy, in []*securityv1beta1.Rule, st *PolicyStatus) (out []model.Rule) {
	for i, rule := range in {
		r := ruleReader{builder: b, status: st, namespace: p.Namespace, action: p.Action}
		out = append(out, r.read(fmt.Sprintf("spec.rules[%d]", i), rule))
	}
	return out
}

// publish attaches a policy to what it covers.
func (b *policyBuilder) publish(p *model.Policy, t policyScope, st *PolicyStatus) {
	b.policies = append(b.policies, p)
	st.Enforced = !p.DryRun
	if p.DryRun {
		st.say("dry run: decides nothing")
	}
	st.Layer = layer(p)
	b.cover(p, st, t.covers)
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
}

func (r *ruleReader) read(path string, in *securityv1beta1.Rule) model.Rule {
	if in == nil {
		r.status.say("%s: empty: counts as unknown", path)
		return model.Rule{Unknown: path + ": empty"}
	}
	var rule model.Rule
	add := func(matches []model.Match) {
		if len(matches) > 0 {
			rule.Clauses = append(rule.Clauses, model.Clause{Matches: matches})
		}
	}
	add(r.from(path, in.From))
	add(r.to(path, in.To))
	for i, cond := range in.When {
		m := r.match(fmt.Sprintf("%s.when[%d]", path, i))
		m.condition(cond)
		add([]model.Match{m.done()})
	}
	return rule
}

func (r *ruleReader) from(path string, froms []*securityv1beta1.Rule_From) (matches []model.Match) {
	for i, from := range froms {
		m := r.match(fmt.Sprintf("%s.from[%d].source", path, i))
		m.source(from.GetSource())
		matches = append(matches, m.done())
	}
	return matches
}

func (r *ruleReader) to(path string, tos []*securityv1beta1.Rule_To) (matches []model.Match) {
	for i, to := range tos {
		m := r.match(fmt.Sprintf("%s.to[%d].operation", path, i))
		m.operation(to.GetOperation())
		matches = append(matches, m.done())
	}
	return matches
}

func (r *ruleReader) match(path string) *matchReader { return &matchReader{ruleReader: r, path: path} }

// matchReader translates one source, operation or condition.
type matchReader struct {
	*ruleReader
	path  string
	out   model.Match
	known int // attributes
	never bool
}

func (m *matchReader) done() model.Match {
	m.out.Principals = m.builder.domains.expand(m.out.Principals)
	m.out.NotPrincipals = m.builder.domains.expand(m.out.NotPrincipals)
	switch {
	case m.out.Unknown != "":
	case m.never:
		return model.Match{} // without attributes: never matches
	case m.known == 0:
		m.invalid("", "no attribute is given")
	}
	return m.out
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
