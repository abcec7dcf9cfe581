package build

import (
	"fmt"
	"slices"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"
)

// whenAnnotation carries conditions with keys beyond Istio's, where its webhook
// refuses these in the spec: a list as in "when", as YAML or JSON, that holds
// for every rule.
const whenAnnotation = "tacit.mesh/when"

// annotatedRules are the rules with the annotation's conditions added. Where
// these cannot be read, each rule gets one that nobody can judge.
func annotatedRules(annotations map[string]string, rules []*securityv1beta1.Rule, st *PolicyStatus) []*securityv1beta1.Rule {
	text, ok := annotations[whenAnnotation]
	if !ok {
		return rules
	}
	conditions, err := readConditions(text)
	if err != nil {
		st.say("metadata.annotations[%s]: %v: every rule counts as unknown", whenAnnotation, err)
		conditions = []*securityv1beta1.Condition{{Key: whenAnnotation}}
	}
	var out []*securityv1beta1.Rule
	for _, r := range rules {
		if r != nil {
			r = &securityv1beta1.Rule{From: r.From, To: r.To, When: slices.Concat(r.When, conditions)}
		}
		out = append(out, r)
	}
	return out
}

func readConditions(text string) ([]*securityv1beta1.Condition, error) {
	var list []struct {
		Key       string   `json:"key"`
		Values    []string `json:"values"`
		NotValues []string `json:"notValues"`
	}
	if err := yaml.UnmarshalStrict([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("not a list of conditions: %w", err)
	}
	var out []*securityv1beta1.Condition
	for _, c := range list {
		if c.Key != "request.time" && !strings.HasPrefix(c.Key, "source.labels[") {
			return nil, fmt.Errorf("key %q: only request.time and source.labels[...] are read here; others belong in spec.rules", c.Key)
		}
		out = append(out, &securityv1beta1.Condition{Key: c.Key, Values: c.Values, NotValues: c.NotValues})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no condition")
	}
	return out, nil
}
