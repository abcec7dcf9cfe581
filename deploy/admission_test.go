package deploy

import (
	"slices"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
)

// What the roles of agents leave too wide is narrowed, for every right to
// write that they have but that to events. What the expressions mean, only an
// API server could say.
func TestAdmissionPolicies(t *testing.T) {
	for name, test := range map[string]struct {
		values values
		want   map[string]string // resource by policy
	}{
		"default": {nil, map[string]string{"tacit-agent-pods": "pods/status"}},
		"taint":   {values{"startupTaint": values{"enabled": true}}, map[string]string{"tacit-agent-pods": "pods/status", "tacit-agent-nodes": "nodes"}},
		"none":    {values{"admissionPolicies": values{"enabled": false}, "startupTaint": values{"enabled": true}}, nil},
	} {
		objects := decode(t, render(t, test.values))
		found := 0
		for _, o := range objects {
			p, ok := o.(*admission.ValidatingAdmissionPolicy)
			if !ok {
				continue
			}
			found++
			rules := p.Spec.MatchConstraints.ResourceRules
			if len(rules) != 1 || !slices.Equal(rules[0].Resources, []string{test.want[p.Name]}) || !slices.Equal(rules[0].Operations, []admission.OperationType{admission.Update}) {
				t.Errorf("%s: %s is about %+v", name, p.Name, rules)
			}
			if p.Spec.FailurePolicy == nil || *p.Spec.FailurePolicy != admission.Fail {
				t.Errorf("%s: what %s cannot judge passes", name, p.Name)
			}
			const agents = "request.userInfo.username == 'system:serviceaccount:tacit-system:tacit-agent'"
			if c := p.Spec.MatchConditions; len(c) != 1 || c[0].Expression != agents {
				t.Errorf("%s: %s is about the requests of %+v", name, p.Name, c)
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
