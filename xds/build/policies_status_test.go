package build

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	securityv1beta1 "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/model"
)

// pods are two of namespace data and one of namespace shop.
func pods() []PolicyTarget {
	return []PolicyTarget{
		{UID: "db", Namespace: "data", Labels: map[string]string{"app": "db", "tier": "back"}},
		{UID: "cache", Namespace: "data", Labels: map[string]string{"app": "cache", "tier": "back"}},
		{UID: "web", Namespace: "shop", Labels: map[string]string{"app": "web"}},
	}
}

func TestScopesAndAttachment(t *testing.T) {
	tests := []struct {
		name, namespace, spec string
		scope                 model.PolicyScope
		attached              map[string][]string
		messages              []string
	}{
		{name: "namespace", namespace: "data", spec: "rules: []", scope: model.ScopeNamespace},
		{name: "empty selector", namespace: "data", spec: "selector: {}", scope: model.ScopeNamespace},
		{name: "mesh", namespace: "root", spec: "rules: []", scope: model.ScopeGlobal},
		{
			name: "selector", namespace: "data", spec: "selector: {matchLabels: {app: db, tier: back}}", scope: model.ScopeSelector,
			attached: map[string][]string{"db": {"data/p"}},
		},
		{
			name: "selector of several", namespace: "data", spec: "selector: {matchLabels: {tier: back}}", scope: model.ScopeSelector,
			attached: map[string][]string{"db": {"data/p"}, "cache": {"data/p"}},
		},
		{
			name: "selector of the root namespace", namespace: "root", spec: "selector: {matchLabels: {app: web}}", scope: model.ScopeSelector,
			attached: map[string][]string{"web": {"root/p"}},
		},
		{
			name: "selector of another namespace", namespace: "shop", spec: "selector: {matchLabels: {app: db}}", scope: model.ScopeSelector,
			messages: []string{"no workload is selected"},
		},
		{
			name: "selector with an empty value", namespace: "data", spec: `selector: {matchLabels: {none: ""}}`, scope: model.ScopeSelector,
			messages: []string{"no workload is selected"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			obj := authorization(t, tt.spec)
			obj.Namespace = tt.namespace
			r := Policies(PolicyInput{
				RootNamespace: "root", AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}, Workloads: pods(),
			})
			if tt.attached == nil {
				tt.attached = map[string][]string{}
			}
			if diff := cmp.Diff(tt.attached, r.Attached); diff != "" {
				t.Errorf("attached (-want +got):\n%s", diff)
			}
			if got := r.Policies[0].Scope; got != tt.scope {
				t.Errorf("scope %v, want %v", got, tt.scope)
			}
			if diff := cmp.Diff(tt.messages, r.Statuses[0].Messages); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheRootNamespaceHasADefault(t *testing.T) {
	obj := authorization(t, "rules: []")
	obj.Namespace = DefaultRootNamespace
	r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}})
	if got := r.Policies[0].Scope; got != model.ScopeGlobal {
		t.Errorf("scope %v of a policy in %s", got, DefaultRootNamespace)
	}
}

func TestNotEnforced(t *testing.T) {
	tests := []struct{ spec, want string }{{
		"targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: gw}",
		"spec.targetRefs: not enforced on Gateway gw: such a policy is for a proxy of its own; name a Service, a workload or a Pod",
	}}
	for _, tt := range tests {
		r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, tt.spec)}, Workloads: pods()})
		if len(r.Policies) > 0 || len(r.Attached) > 0 {
			t.Errorf("%s: translated to %v", tt.spec, r.Policies[0])
		}
		want := []PolicyStatus{{Kind: "AuthorizationPolicy", Namespace: "data", Name: "p", Layer: "L4", Messages: []string{tt.want}}}
		if diff := cmp.Diff(want, r.Statuses); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.spec, diff)
		}
	}
}

func TestUnknownActionDenies(t *testing.T) {
	obj := authorization(t, "rules: []")
	obj.Spec.Action = 9
	r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}})
	if p := r.Policies[0]; p.Action != model.ActionDeny || p.Unknown != "spec.action: 9" {
		t.Errorf("got %+v", p)
	}
	if diff := cmp.Diff([]string{"spec.action: 9 is not known: every connection is denied"}, r.Statuses[0].Messages); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestDryRun(t *testing.T) {
	tests := []struct {
		annotations map[string]string
		dry         bool
		messages    []string
	}{
		{nil, false, nil},
		{map[string]string{"istio.io/dry-run": "true"}, true, []string{"dry run: decides nothing"}},
		{map[string]string{"tacit.mesh/dry-run": "true", "istio.io/dry-run": "false"}, true, []string{"dry run: decides nothing"}},
		{map[string]string{"tacit.mesh/dry-run": "false"}, false, nil},
		{map[string]string{"istio.io/dry-run": "yes"}, false, []string{`metadata.annotations[istio.io/dry-run]: "yes" is neither true nor false: taken for false`}},
	}
	for _, tt := range tests {
		obj := authorization(t, "rules: []")
		obj.Annotations = tt.annotations
		r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}})
		if r.Policies[0].DryRun != tt.dry || r.Statuses[0].Enforced == tt.dry {
			t.Errorf("%v: dry run %v, enforced %v", tt.annotations, r.Policies[0].DryRun, r.Statuses[0].Enforced)
		}
		if diff := cmp.Diff(tt.messages, r.Statuses[0].Messages); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.annotations, diff)
		}
	}
}

func TestGapsAreTold(t *testing.T) {
	skips := func(s string) model.PortSet {
		set, err := model.ParsePorts(s)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	workloads := pods()
	workloads[0].SkipInbound = skips("5432,9000-9100")
	workloads[1].Uncaptured = true
	const outside = "not enforced on workloads that are not captured: cache"
	tests := []struct {
		spec string
		want []string
	}{
		{"rules: [{to: [{operation: {ports: ['80']}}]}]", []string{outside, "not enforced on port 5432,9000-9100, which bypasses the mesh, of workloads: db"}},
		{"action: DENY\nrules: [{}]", []string{outside, "not enforced on port 5432,9000-9100, which bypasses the mesh, of workloads: db"}},
		{"action: DENY\nrules: [{to: [{operation: {ports: ['80', '9050']}}]}]", []string{outside, "not enforced on port 9000-9100, which bypasses the mesh, of workloads: db"}},
		{"action: DENY\nrules: [{to: [{operation: {ports: ['80']}}]}]", []string{outside}},
		{"selector: {matchLabels: {app: cache}}", []string{outside}},
	}
	for _, tt := range tests {
		r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, tt.spec)}, Workloads: workloads})
		if diff := cmp.Diff(tt.want, r.Statuses[0].Messages); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.spec, diff)
		}
	}
	if got := someOf([]string{"g", "f", "e", "d", "c", "b", "a"}); got != "a, b, c, d, e and 2 more" {
		t.Errorf("someOf: %s", got)
	}
}

// peer makes a PeerAuthentication that is as many minutes old as told.
func peer(t *testing.T, key string, age int, spec string) *securityv1.PeerAuthentication {
	t.Helper()
	obj := &securityv1.PeerAuthentication{}
	if err := yaml.Unmarshal([]byte("spec:\n"+indent(spec)), obj); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	obj.Namespace, obj.Name, _ = strings.Cut(key, "/")
	obj.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, -age, 0, 0, time.UTC))
	return obj
}

func TestModesInherit(t *testing.T) {
	const strict = "root/istio_converted_static_strict"
	const own = "data/converted_peer_authentication_own"
	const db = "selector: {matchLabels: {app: db}}\n"
	mesh := func(mode string) *securityv1.PeerAuthentication {
		return peer(t, "root/mesh", 9, "mtls: {mode: "+mode+"}")
	}
	namespace := func(mode string) *securityv1.PeerAuthentication {
		return peer(t, "data/ns", 8, "mtls: {mode: "+mode+"}")
	}
	workload := func(spec string) *securityv1.PeerAuthentication { return peer(t, "data/own", 7, db+spec) }
	tests := []struct {
		name           string
		objs           []*securityv1.PeerAuthentication
		db, cache, web []string
		rule           string // of the converted policy
	}{
		{name: "unset everywhere", objs: []*securityv1.PeerAuthentication{mesh("UNSET"), namespace("UNSET")}},
		{name: "mesh", objs: []*securityv1.PeerAuthentication{mesh("STRICT")}, db: []string{strict}, cache: []string{strict}, web: []string{strict}},
		{name: "namespace", objs: []*securityv1.PeerAuthentication{namespace("STRICT")}, db: []string{strict}, cache: []string{strict}},
		{name: "namespace inherits", objs: []*securityv1.PeerAuthentication{mesh("STRICT"), namespace("UNSET")}, db: []string{strict}, cache: []string{strict}, web: []string{strict}},
		{name: "namespace weakens", objs: []*securityv1.PeerAuthentication{mesh("STRICT"), namespace("PERMISSIVE")}, web: []string{strict}},
		{name: "workload", objs: []*securityv1.PeerAuthentication{workload("mtls: {mode: STRICT}")}, db: []string{strict}},
		{name: "workload weakens", objs: []*securityv1.PeerAuthentication{mesh("STRICT"), workload("mtls: {mode: DISABLE}")}, cache: []string{strict}, web: []string{strict}},
		{name: "workload inherits", objs: []*securityv1.PeerAuthentication{namespace("STRICT"), workload("mtls: {mode: UNSET}")}, db: []string{strict}, cache: []string{strict}},
		{
			name: "strict port", objs: []*securityv1.PeerAuthentication{workload("portLevelMtls: {80: {mode: STRICT}, 81: {mode: UNSET}, 82: {mode: PERMISSIVE}}")},
			db: []string{own}, rule: "DestinationPorts[80]",
		},
		{
			name: "open port under the mesh's STRICT", objs: []*securityv1.PeerAuthentication{mesh("STRICT"), workload("portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: STRICT}, 82: {mode: DISABLE}}")},
			db: []string{own}, cache: []string{strict}, web: []string{strict}, rule: "NotDestinationPorts[80 82]",
		},
		{
			name: "open port under its own STRICT", objs: []*securityv1.PeerAuthentication{namespace("PERMISSIVE"), workload("mtls: {mode: STRICT}\nportLevelMtls: {80: {mode: DISABLE}}")},
			db: []string{own}, rule: "NotDestinationPorts[80]",
		},
		{
			name: "strict port under its own PERMISSIVE", objs: []*securityv1.PeerAuthentication{mesh("STRICT"), workload("mtls: {mode: PERMISSIVE}\nportLevelMtls: {80: {mode: STRICT}}")},
			db: []string{own}, cache: []string{strict}, web: []string{strict}, rule: "DestinationPorts[80]",
		},
		{name: "ports that change nothing", objs: []*securityv1.PeerAuthentication{mesh("STRICT"), workload("portLevelMtls: {80: {mode: STRICT}}")}, db: []string{strict}, cache: []string{strict}, web: []string{strict}},
		{name: "ports without a selector", objs: []*securityv1.PeerAuthentication{peer(t, "data/ns", 8, "portLevelMtls: {80: {mode: STRICT}}")}},
		{name: "selector in the root namespace", objs: []*securityv1.PeerAuthentication{peer(t, "root/x", 1, db+"mtls: {mode: STRICT}")}},
		{
			name: "oldest of the mesh", objs: []*securityv1.PeerAuthentication{peer(t, "root/young", 1, "mtls: {mode: STRICT}"), mesh("PERMISSIVE")},
		},
		{
			name: "oldest of the workload", objs: []*securityv1.PeerAuthentication{peer(t, "data/a", 1, db+"mtls: {mode: PERMISSIVE}"), workload("mtls: {mode: STRICT}")},
			db: []string{strict},
		},
		{
			name: "same age, by name", objs: []*securityv1.PeerAuthentication{peer(t, "data/z", 7, db+"mtls: {mode: PERMISSIVE}"), workload("mtls: {mode: STRICT}")},
			db: []string{strict},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Policies(PolicyInput{RootNamespace: "root", PeerAuthentications: tt.objs, Workloads: pods()})
			got := map[string][]string{"db": r.Attached["db"], "cache": r.Attached["cache"], "web": r.Attached["web"]}
			if diff := cmp.Diff(map[string][]string{"db": tt.db, "cache": tt.cache, "web": tt.web}, got); diff != "" {
				t.Errorf("attached (-want +got):\n%s", diff)
			}
			checkConverted(t, r.Policies, tt.rule)
		})
	}
}

// checkConverted: the static policy is always there, that of a workload only
// if its ports differ; each denies connections without an identity.
func checkConverted(t *testing.T, policies []*model.Policy, rule string) {
	t.Helper()
	for _, p := range policies {
		want := "NotPrincipals[*]"
		if p.Key() != "root/istio_converted_static_strict" {
			if rule == "" {
				t.Errorf("unwanted policy %s: %v", p.Key(), words(p.Rules))
			}
			want += " " + rule
		}
		if got := words(p.Rules); p.Action != model.ActionDeny || p.Scope != model.ScopeSelector || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, want %s", p.Key(), got, want)
		}
	}
	if wantLen := map[bool]int{true: 1, false: 2}[rule == ""]; len(policies) != wantLen {
		t.Errorf("%d policies, want %d", len(policies), wantLen)
	}
}

func TestPeerAuthenticationStatuses(t *testing.T) {
	const db = "selector: {matchLabels: {app: db}}\n"
	unknown := peer(t, "shop/mode", 1, "mtls: {mode: STRICT}")
	unknown.Spec.Mtls.Mode = 9
	ports := peer(t, "data/ports", 1, db)
	ports.Spec.PortLevelMtls = map[uint32]*securityv1beta1.PeerAuthentication_MutualTLS{0: {Mode: 3}, 65616: {Mode: 3}}
	ports.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "db"}}
	workloads := pods()
	workloads[2].Uncaptured = true
	r := Policies(PolicyInput{RootNamespace: "root", Workloads: workloads, PeerAuthentications: []*securityv1.PeerAuthentication{
		unknown, ports,
		peer(t, "data/disable", 9, "selector: {matchLabels: {tier: back}}\nmtls: {mode: DISABLE}"),
		peer(t, "data/ns", 9, "portLevelMtls: {80: {mode: STRICT}}"),
		peer(t, "data/young", 8, "mtls: {mode: STRICT}"),
		peer(t, "root/selector", 9, db+"mtls: {mode: STRICT}"),
		peer(t, "shop/nobody", 9, db+"mtls: {mode: STRICT}"),
		peer(t, "root/mesh", 9, "mtls: {mode: STRICT}"),
	}})
	type status struct {
		Enforced bool
		Messages []string
	}
	got := map[string]status{}
	for _, s := range r.Statuses {
		got[s.Namespace+"/"+s.Name] = status{s.Enforced, s.Messages}
	}
	want := map[string]status{
		"shop/mode": {true, []string{
			"spec.mtls.mode: 9 is not known: taken for STRICT",
			"not enforced on workloads that are not captured: web",
		}},
		"data/ports": {false, []string{
			"spec.portLevelMtls[0]: no such port (1-65535)",
			"spec.portLevelMtls[65616]: no such port (1-65535)",
			"not enforced because PeerAuthentication data/disable, which is older, selects as well",
		}},
		"data/disable":  {true, []string{"spec.mtls.mode: DISABLE is taken for PERMISSIVE: callers in the mesh still use mTLS"}},
		"data/ns":       {true, []string{"spec.portLevelMtls: not enforced: it takes a selector"}},
		"data/young":    {false, []string{"not enforced: PeerAuthentication data/ns of the same scope is older"}},
		"root/selector": {false, []string{"spec.selector: not enforced: a PeerAuthentication with a selector has no effect in the root namespace"}},
		"shop/nobody":   {true, []string{"no workload is selected"}},
		"root/mesh":     {true, []string{"not enforced on workloads that are not captured: web"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	if got := r.Attached["web"]; len(got) != 1 {
		t.Errorf("an unknown mode counts as STRICT: web has %v", got)
	}
}
