package build

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

var aliased = trustDomains{"new.example", "old.example"}

// Principals of one name of the trust domain are those of the other, and
// nothing else becomes theirs.
func TestTrustDomainAliases(t *testing.T) {
	for _, test := range []struct {
		spec, want string
	}{
		{`principals: [old.example/ns/a/sa/b]`, `Principals[old.example/ns/a/sa/b new.example/ns/a/sa/b]`},
		{`principals: ["spiffe://new.example/ns/a/sa/b"]`, `Principals[new.example/ns/a/sa/b old.example/ns/a/sa/b]`},
		{`principals: [cluster.local/ns/a/sa/b]`, `Principals[new.example/ns/a/sa/b old.example/ns/a/sa/b]`},
		{`principals: ["cluster.local/*"]`, `Principals[new.example/* old.example/*]`},
		{`principals: ["cluster.local*"]`, `Principals[cluster.local*]`},
		{`principals: ["*ster.local/ns/a/sa/b"]`, `Principals[*ster.local/ns/a/sa/b]`},
		{`principals: [cluster.local/ns/a/sa/b, new.example/ns/a/sa/b]`, `Principals[new.example/ns/a/sa/b old.example/ns/a/sa/b]`},
		{`notPrincipals: [cluster.local/ns/a/sa/b]`, `NotPrincipals[new.example/ns/a/sa/b old.example/ns/a/sa/b]`},
		{`notPrincipals: [old.example/ns/a/*]`, `NotPrincipals[old.example/ns/a/* new.example/ns/a/*]`},
		{`principals: [old*]`, `Principals[old* new.example/*]`},
		{`principals: ["*ld.example/ns/a/sa/b"]`, `Principals[*ld.example/ns/a/sa/b new.example/ns/a/sa/b]`},
		{`trustDomains: [old.example]`, `Principals[old.example/* new.example/*]`},
		{`principals: [other.example/ns/a/sa/b]`, `Principals[other.example/ns/a/sa/b]`},
		{`principals: [old.example.org/ns/a/sa/b]`, `Principals[old.example.org/ns/a/sa/b]`},
		{`principals: ["*/ns/a/sa/b", "*/sa/b", "*"]`, `Principals[*/ns/a/sa/b */sa/b *]`},
		{`principals: [old.example/ns/a/sa/b, new.example/ns/a/sa/b]`, `Principals[old.example/ns/a/sa/b new.example/ns/a/sa/b]`},
	} {
		r := Policies(PolicyInput{TrustDomains: aliased, AuthorizationPolicies: []*securityv1.AuthorizationPolicy{
			authorization(t, "rules: [{from: [{source: {"+test.spec+"}}]}]"),
		}})
		if got := words(r.Policies[0].Rules); len(got) != 1 || got[0] != test.want {
			t.Errorf("%s: %q, want %q", test.spec, got, test.want)
		}
	}
	r := Policies(PolicyInput{TrustDomains: aliased, AuthorizationPolicies: []*securityv1.AuthorizationPolicy{
		authorization(t, `rules: [{when: [{key: source.principal, values: [old.example/ns/a/sa/b]}]}]`),
	}})
	if got := words(r.Policies[0].Rules); got[0] != `Principals[old.example/ns/a/sa/b new.example/ns/a/sa/b]` {
		t.Errorf("a condition: %q", got)
	}
}

// cluster.local is like any other name where it is one of the trust domain's.
func TestClusterLocalIsAName(t *testing.T) {
	principal := model.StringMatch{Kind: model.MatchExact, Value: "cluster.local/ns/a/sa/b"}
	for _, test := range []struct {
		names trustDomains
		want  []string
	}{
		{trustDomains{"new.example", "cluster.local"}, []string{"cluster.local/ns/a/sa/b", "new.example/ns/a/sa/b"}},
		{trustDomains{"cluster.local", "old.example"}, []string{"cluster.local/ns/a/sa/b", "old.example/ns/a/sa/b"}},
		{trustDomains{"cluster.local"}, []string{"cluster.local/ns/a/sa/b"}},
		{trustDomains{"new.example"}, []string{"new.example/ns/a/sa/b"}},
		{nil, []string{"cluster.local/ns/a/sa/b"}}, // as when a policy is judged without a mesh
	} {
		var got []string
		for _, m := range test.names.expand([]model.StringMatch{principal}) {
			got = append(got, m.Value)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%q: %s", test.names, diff)
		}
	}
}

// The proxies whose word on clients counts are named as in policies.
func TestForwardingByAlias(t *testing.T) {
	p := newPolicySet(Settings{TrustDomain: "new.example", Forwarding: model.Forwarding{
		Proxies: 1, Callers: []model.StringMatch{{Kind: model.MatchExact, Value: "cluster.local/ns/ingress/sa/gateway"}},
	}})
	want := []model.StringMatch{{Kind: model.MatchExact, Value: "new.example/ns/ingress/sa/gateway"}}
	if diff := cmp.Diff(want, p.forwarding.Callers); diff != "" {
		t.Error(diff)
	}
}

// An identity is revoked by whatever name.
func TestRevokedAlias(t *testing.T) {
	for _, id := range []string{"spiffe://old.example/ns/shop/sa/web", "spiffe://new.example/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web"} {
		r := Policies(PolicyInput{
			TrustDomains:      aliased,
			RevokedIdentities: []*kinds.RevokedIdentity{revocation(t, "tacit-system", id, "")},
			Workloads:         []PolicyTarget{{UID: "web", Identity: model.Identity{TrustDomain: "new.example", Namespace: "shop", ServiceAccount: "web"}}},
		})
		if diff := cmp.Diff([]string{`Principals[new.example/ns/shop/sa/web old.example/ns/shop/sa/web]`}, words(r.Policies[0].Rules)); diff != "" {
			t.Errorf("%s: %s", id, diff)
		}
		if len(r.Attached["web"]) != 1 {
			t.Errorf("%s: attached: %v", id, r.Attached)
		}
	}
}

// During a migration nodes ask for either name, of workloads that they run.
func TestAliasesOfWorkloads(t *testing.T) {
	m := New(Settings{TrustDomain: "new.example", TrustDomainAliases: []string{"old.example", "new.example"}})
	pod := object[corev1.Pod](t, `{metadata: {name: web, namespace: shop, uid: u, annotations: {tacit.mesh/redirection: enabled}}, spec: {serviceAccountName: web, nodeName: node-1}, status: {podIPs: [{ip: 198.18.0.1}]}}`)
	objects := Objects{
		Namespaces: []*corev1.Namespace{object[corev1.Namespace](t, `{metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}}`)},
		Pods:       []*corev1.Pod{pod},
	}
	s := model.NewSnapshot().Apply(m.Apply(objects.Since(nil)))
	id := model.Identity{TrustDomain: "new.example", Namespace: "shop", ServiceAccount: "web"}
	for domain, want := range map[string]bool{"new.example": true, "old.example": true, "other.example": false} {
		id.TrustDomain = domain
		if got := m.Permits("node-1", id); got != want {
			t.Errorf("the node may have %s: %v, want %v", id, got, want)
		}
		for _, w := range s.Workloads() {
			if got := w.InTrustDomain(domain); got != want {
				t.Errorf("%s is in %s: %v, want %v", w.Name, domain, got, want)
			}
			if got := w.Is(id); got != want {
				t.Errorf("%s is %s: %v, want %v", w.Name, id, got, want)
			}
		}
	}
}
