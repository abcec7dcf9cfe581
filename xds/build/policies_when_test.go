package build

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

func TestConditionsInAnAnnotation(t *testing.T) {
	const spec = `
rules:
- from: [{source: {namespaces: [shop]}}]
- to: [{operation: {ports: ["80"]}}]
  when: [{key: destination.port, values: ["80"]}]`
	for _, test := range []struct {
		name, annotation string
		want             []string
		message          string // part of the status
	}{
		{"both keys", `
- {key: request.time, values: ["08:00:00-18:00:00"]}
- {key: "source.labels[app]", notValues: [db]}`, []string{
			"Namespaces[shop] and Times[{8h0m0s 18h0m0s}] and NotSourceLabels[{app [db]}]",
			"DestinationPorts[80] and DestinationPorts[80] and Times[{8h0m0s 18h0m0s}] and NotSourceLabels[{app [db]}]",
		}, ""},
		{"labels", `[{"key": "source.labels[app]", "values": ["web"]}]`, []string{
			"Namespaces[shop] and SourceLabels[{app [web]}]", "DestinationPorts[80] and DestinationPorts[80] and SourceLabels[{app [web]}]",
		}, ""},
		{"another key", `[{key: source.ip, values: [10.0.0.1]}]`, nil, "only request.time and source.labels"},
		{"no list", `request.time`, nil, "not a list of conditions"},
		{"another field", `[{key: request.time, value: ["08:00:00"]}]`, nil, "not a list of conditions"},
		{"empty", `[]`, nil, "no condition"},
	} {
		t.Run(test.name, func(t *testing.T) {
			obj := authorization(t, spec)
			obj.Annotations = map[string]string{whenAnnotation: test.annotation}
			result := Policies(PolicyInput{RootNamespace: DefaultRootNamespace, AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}})
			got := words(result.Policies[0].Rules)
			if test.want != nil {
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				return
			}
			for _, rule := range got {
				if !strings.Contains(rule, "unknown") {
					t.Errorf("rule %q counts as known", rule)
				}
			}
			if messages := strings.Join(result.Statuses[0].Messages, "\n"); !strings.Contains(messages, test.message) {
				t.Errorf("status %q does not say %q", messages, test.message)
			}
		})
	}
}
