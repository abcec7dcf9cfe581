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
		{`principals: [cluster.local/ns/a/sa/b]`, `Principals[cluster.local/ns/a/sa/b new.example/ns/a/sa/b old.example/ns/a/sa/b]`},
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

// An identity is revoked by whatever name.
func TestRevokedAlias(t *testing.T) {
	r := Policies(PolicyInput{
		TrustDomains:      aliased,
		RevokedIdentities: []*kinds.RevokedIdentity{revocation(t, "tacit-system", "spiffe://old.example/ns/shop/sa/web", "")},
		Workloads:         []PolicyTarget{{UID: "web", Identity: model.Identity{TrustDomain: "new.example", Namespace: "shop", ServiceAccount: "web"}}},
	})
	if diff := cmp.Diff([]string{`Principals[new.example/ns/shop/sa/web old.example/ns/shop/sa/web]`}, words(r.Policies[0].Rules)); diff != "" {
		t.Error(diff)
	}
	if len(r.Attached["web"]) != 1 {
		t.Errorf("attached: %v", r.Attached)
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
