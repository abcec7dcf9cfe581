package deploy

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tacit-mesh/tacit/xds/source/security"
)

// permissions are all that the programs may do, with the reason. A key is
// "[NAMESPACE/]ACCOUNT VERB GROUP/RESOURCE[=NAME]".
func permissions() map[string]string {
	permissions := map[string]string{}
	for _, p := range []struct{ who, verbs, what, reason string }{
		{"tacitd", "list watch", "/pods /namespaces /services /nodes /serviceaccounts discovery.k8s.io/endpointslices",
			"the mesh is built from them"},
		{"tacitd", "update", "policy.tacit.mesh/ratelimits/status policy.tacit.mesh/revokedidentities/status policy.tacit.mesh/bypasses/status policy.linkerd.io/httplocalratelimitpolicies/status", "the condition tacit.mesh/Enforced"},
		{"tacitd", "update", "security.istio.io/authorizationpolicies/status security.istio.io/peerauthentications/status security.istio.io/requestauthentications/status",
			"the condition tacit.mesh/Enforced"},
		{"tacitd", "create", "authentication.k8s.io/tokenreviews", "whether a token is that of a proxy"},
		{"tacitd", "get", "certificates.k8s.io/certificatesigningrequests", "who wants to see the map"},
		{"tacitd", "create", "authorization.k8s.io/subjectaccessreviews", "what of the map they may see"},
		{"tacit-system/tacitd", "get", "/pods", "the proxy's pod behind a token, and its node"},
		{"tacit-system/tacitd", "get update", "/secrets=tacit-ca", "the CA's key, and its rotation"},
		{"tacit-system/tacitd", "create", "/secrets", "the CA's key, once; RBAC cannot name what is made"},
		{"tacit-system/tacitd", "get list watch update", "/configmaps=tacit-ca-root", "the CA's certificate is kept current for the proxies"},
		{"tacit-system/tacitd", "get update", "/configmaps=tacit-policy-uses", "when policies were last of use outlives it"},
		{"tacit-system/tacitd", "create", "/configmaps", "both, the first time"},
		{"tacit-system/tacitd", "get update", "coordination.k8s.io/leases=tacitd", "one of them writes status"},
		{"tacit-system/tacitd", "create", "coordination.k8s.io/leases", "the same, the first time"},
		{"tacit-agent", "get list watch", "/pods /namespaces", "which pods of the node are in the mesh"},
		{"tacit-agent", "get list watch", "node.k8s.io/runtimeclasses", "which of them are in a sandbox and cannot be"},
		{"tacit-agent", "list watch", "policy.tacit.mesh/bypasses", "for which of them the mesh is suspended"},
		{"tacit-agent", "patch", "/pods/status", "the report that a pod is captured"},
		{"tacit-agent", "create", "/events", "why a pod is not captured"},
		{"tacit-system/tacit-agent", "create", "/serviceaccounts/token=tacit-cni", "the CNI plugin's token"},
		{"tacit-cni", "get", "/pods /namespaces", "whether a pod that is made while the agent is away is in the mesh"},
	} {
		for verb := range strings.FieldsSeq(p.verbs) {
			for what := range strings.FieldsSeq(p.what) {
				permissions[p.who+" "+verb+" "+what] = p.reason
			}
		}
	}
	for _, kind := range security.Kinds() {
		for verb := range strings.FieldsSeq("get list watch") {
			permissions["tacitd "+verb+" "+kind.Group()+"/"+kind.Resource] = "it is enforced; read again before its status is written"
		}
		for verb := range strings.FieldsSeq("list watch") {
			permissions["tacitd "+verb+" apiextensions.k8s.io/customresourcedefinitions="+kind.Resource+"."+kind.Group()] = "a kind may come and go while it runs"
		}
	}
	return permissions
}

// granted are the permissions of the rendered roles, by the accounts that they
// are bound to.
func granted(t *testing.T, objects []runtime.Object) []string {
	t.Helper()
	all := map[string]bool{}
	grant := func(who string, rules []rbac.PolicyRule) {
		for _, rule := range rules {
			if rule.NonResourceURLs != nil {
				t.Errorf("%s may ask for %v", who, rule.NonResourceURLs)
			}
			names := rule.ResourceNames
			if names == nil {
				names = []string{""}
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						for _, name := range names {
							key := who + " " + verb + " " + group + "/" + resource
							if name != "" {
								key += "=" + name
							}
							all[key] = true
						}
					}
				}
			}
		}
	}
	for _, o := range objects {
		switch b := o.(type) {
		case *rbac.ClusterRoleBinding:
			if b.RoleRef.Kind != "ClusterRole" {
				t.Errorf("%s binds %+v", b.Name, b.RoleRef)
			}
			grant(account(t, b.Subjects), find[*rbac.ClusterRole](t, objects, b.RoleRef.Name).Rules)
		case *rbac.RoleBinding:
			if b.RoleRef.Kind != "Role" {
				t.Errorf("%s binds %+v", b.Name, b.RoleRef)
			}
			grant(b.Namespace+"/"+account(t, b.Subjects), find[*rbac.Role](t, objects, b.RoleRef.Name).Rules)
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func account(t *testing.T, subjects []rbac.Subject) string {
	t.Helper()
	if len(subjects) != 1 || subjects[0].Kind != "ServiceAccount" || subjects[0].Namespace != Namespace {
		t.Fatalf("a role is bound to %+v", subjects)
	}
	return subjects[0].Name
}

// The roles hold what the programs need, and nothing beyond.
func TestPermissions(t *testing.T) {
	got := granted(t, decode(t, render(t, nil)))
	if diff := cmp.Diff(slices.Sorted(maps.Keys(permissions())), got); diff != "" {
		t.Errorf("permissions (- listed here with a reason, + in the chart):\n%s", diff)
	}
	for _, key := range got {
		if strings.Contains(key, "*") || strings.Contains(key, "tacit-proxy") {
			t.Errorf("%s: no program needs everything, and the proxy needs nothing", key)
		}
	}
}

// Nobody may bypass by the chart alone, and whoever is bound to the role may do
// that and no more.
func TestBypassRole(t *testing.T) {
	objects := decode(t, render(t, nil))
	want := []rbac.PolicyRule{{APIGroups: []string{"policy.tacit.mesh"}, Resources: []string{"bypasses"}, Verbs: []string{"get", "list", "watch", "create", "patch", "bypass"}}}
	role := find[*rbac.ClusterRole](t, objects, "tacit-bypass")
	if diff := cmp.Diff(want, role.Rules); diff != "" || role.AggregationRule != nil {
		t.Errorf("the role: %s", diff)
	}
	for label := range role.Labels {
		if strings.HasPrefix(label, "rbac.authorization.k8s.io/aggregate-to-") {
			t.Errorf("%s gives it to others", label)
		}
	}
	for _, key := range granted(t, objects) {
		if strings.HasSuffix(key, "policy.tacit.mesh/bypasses") && (strings.Contains(key, " create ") || strings.Contains(key, " patch ") || strings.Contains(key, " update ")) {
			t.Errorf("%s: a program may bypass by itself", key)
		}
	}
}

// Who is to see the map needs no right to run anything in our pods, and gets none
// by the chart alone.
func TestMapRole(t *testing.T) {
	objects := decode(t, render(t, nil))
	vouched := []rbac.PolicyRule{{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests"}, Verbs: []string{"create"}}}
	if diff := cmp.Diff(vouched, find[*rbac.ClusterRole](t, objects, "tacit-ui").Rules); diff != "" {
		t.Errorf("in the cluster: %s", diff)
	}
	reach := []rbac.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
		{APIGroups: []string{""}, Resources: []string{"pods/portforward"}, Verbs: []string{"create"}},
	}
	if diff := cmp.Diff(reach, find[*rbac.Role](t, objects, "tacit-ui").Rules); diff != "" {
		t.Errorf("in our namespace: %s", diff)
	}
}

// Settings that take something away take its permissions, too, and the other
// way round.
func TestPermissionsFollowSettings(t *testing.T) {
	base := granted(t, decode(t, render(t, nil)))
	for name, test := range map[string]struct {
		values values
		change []string
	}{
		"cni":   {values{"cni": values{"enabled": false}}, []string{"tacit-cni get /namespaces", "tacit-cni get /pods", "tacit-system/tacit-agent create /serviceaccounts/token=tacit-cni"}},
		"taint": {values{"startupTaint": values{"enabled": true}}, []string{"tacit-agent get /nodes", "tacit-agent patch /nodes"}},
		"status": {values{"tacitd": values{"writeStatus": false}}, []string{
			"tacit-system/tacitd create coordination.k8s.io/leases",
			"tacit-system/tacitd get coordination.k8s.io/leases=tacitd",
			"tacit-system/tacitd update coordination.k8s.io/leases=tacitd",
			"tacitd update policy.linkerd.io/httplocalratelimitpolicies/status",
			"tacitd update policy.tacit.mesh/bypasses/status",
			"tacitd update policy.tacit.mesh/ratelimits/status",
			"tacitd update policy.tacit.mesh/revokedidentities/status",
			"tacitd update security.istio.io/authorizationpolicies/status",
			"tacitd update security.istio.io/peerauthentications/status",
			"tacitd update security.istio.io/requestauthentications/status",
		}},
	} {
		var change []string
		got := granted(t, decode(t, render(t, test.values)))
		for _, key := range slices.Concat(base, got) {
			if slices.Contains(base, key) != slices.Contains(got, key) {
				change = append(change, key)
			}
		}
		if diff := cmp.Diff(test.change, slices.Sorted(slices.Values(change))); diff != "" {
			t.Errorf("%s changes other permissions than wanted:\n%s", name, diff)
		}
	}
}
