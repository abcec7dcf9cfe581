package deploy

import (
	"slices"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
)

// What the roles of agents leave too wide is narrowed, for every right to
// write that they have but that to events; and who may write a bypass needs the
// verb of its own. What the expressions mean, only an API server could say.
func TestAdmissionPolicies(t *testing.T) {
	const agents = "request.userInfo.username == 'system:serviceaccount:tacit-system:tacit-agent'"
	update, write := []admission.OperationType{admission.Update}, []admission.OperationType{admission.Create, admission.Update}
	type policy struct {
		resource   string
		operations []admission.OperationType
		about      []string // conditions
	}
	pods, bypasses := policy{"pods/status", update, []string{agents}}, policy{"bypasses", write, nil}
	for name, test := range map[string]struct {
		values values
		want   map[string]policy
	}{
		"default": {nil, map[string]policy{"tacit-agent-pods": pods, "tacit-bypass": bypasses}},
		"taint": {values{"startupTaint": values{"enabled": true}}, map[string]policy{
			"tacit-agent-pods": pods, "tacit-agent-nodes": {"nodes", update, []string{agents}}, "tacit-bypass": bypasses,
		}},
		"none": {values{"admissionPolicies": values{"enabled": false}, "startupTaint": values{"enabled": true}}, nil},
	} {
		objects := decode(t, render(t, test.values))
		found := 0
		for _, o := range objects {
			p, ok := o.(*admission.ValidatingAdmissionPolicy)
			if !ok {
				continue
			}
			found++
			want, rules := test.want[p.Name], p.Spec.MatchConstraints.ResourceRules
			if len(rules) != 1 || !slices.Equal(rules[0].Resources, []string{want.resource}) || !slices.Equal(rules[0].Operations, want.operations) {
				t.Errorf("%s: %s is about %+v", name, p.Name, rules)
			}
			if p.Spec.FailurePolicy == nil || *p.Spec.FailurePolicy != admission.Fail {
				t.Errorf("%s: what %s cannot judge passes", name, p.Name)
			}
			var about []string
			for _, c := range p.Spec.MatchConditions {
				about = append(about, c.Expression)
			}
			if !slices.Equal(about, want.about) {
				t.Errorf("%s: %s is about the requests of %q", name, p.Name, about)
			}
			binding := find[*admission.ValidatingAdmissionPolicyBinding](t, objects, p.Name)
			if binding.Spec.PolicyName != p.Name || !slices.Equal(binding.Spec.ValidationActions, []admission.ValidationAction{admission.Deny}) {
				t.Errorf("%s: %s is bound by %+v", name, p.Name, binding.Spec)
			}
		}
		if found != len(test.want) {
			t.Errorf("%s: %d policies, want %d", name, found, len(test.want))
		}
	}
}
