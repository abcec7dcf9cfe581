package policy_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// From the manifests of a user to the decision: every case holds policies for
// the pods below, and connections to the database with what becomes of them.
//
//	data/db   10.0.0.9  app=db
//	shop/web  10.0.0.1  app=web, tier=front
//	shop/job  10.0.0.2  app=job
const header = "apiVersion: security.istio.io/v1\nkind: "

// connection is "CALLER PORT [TIME]", where a caller is a pod with mTLS,
// "plain" for one outside the mesh at 192.0.2.1, or "plain:POD".
type connections map[string]string

func TestManifests(t *testing.T) {
	tests := []struct {
		name, manifests string
		want            connections
	}{
		{"nothing", "", connections{
			"shop/web 5432": "allowed: no ALLOW policy covers the workload",
			"plain 5432":    "allowed: no ALLOW policy covers the workload",
		}},
		{"allow one account", header + `AuthorizationPolicy
metadata: {namespace: data, name: web-only}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {ports: ["5432"]}}]
`, connections{
			"shop/web 5432":       "allowed by policy data/web-only",
			"shop/web 5433":       "denied: no ALLOW policy matched; closest was data/web-only (not matched: ports)",
			"shop/job 5432":       "denied: no ALLOW policy matched; closest was data/web-only (not matched: principals)",
			"plain:shop/web 5432": "denied: no ALLOW policy matched; closest was data/web-only (not matched: principals)",
		}},
		{"selector of another pod", header + `AuthorizationPolicy
metadata: {namespace: data, name: other}
spec: {selector: {matchLabels: {app: cache}}}
`, connections{"plain 5432": "allowed: no ALLOW policy covers the workload"}},
		{"deny in the whole mesh", header + `AuthorizationPolicy
metadata: {namespace: root, name: no-jobs}
spec:
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [shop/job]}}]}]
`, connections{
			"shop/web 5432": "allowed: no ALLOW policy covers the workload",
			"shop/job 5432": "denied by policy root/no-jobs (matched: serviceAccounts)",
		}},
		{"allow nothing, on dry run", header + `AuthorizationPolicy
metadata: {namespace: data, name: nothing, annotations: {tacit.mesh/dry-run: "true"}}
spec: {}
`, connections{"shop/web 5432": "allowed: no ALLOW policy covers the workload; dry run: policy data/nothing would deny"}},
		{"STRICT with an open port", header + `PeerAuthentication
metadata: {namespace: root, name: default}
spec: {mtls: {mode: STRICT}}
---
` + header + `PeerAuthentication
metadata: {namespace: data, name: db}
spec:
  selector: {matchLabels: {app: db}}
  portLevelMtls: {9187: {mode: PERMISSIVE}}
`, connections{
			"shop/web 5432": "allowed: no ALLOW policy covers the workload",
			"plain 5432":    "denied by policy data/converted_peer_authentication_db (matched: notPrincipals)",
			"plain 9187":    "allowed: no ALLOW policy covers the workload",
		}},
		{"STRICT in the mesh", header + `PeerAuthentication
metadata: {namespace: root, name: default}
spec: {mtls: {mode: STRICT}}
`, connections{
			"shop/web 5432": "allowed: no ALLOW policy covers the workload",
			"plain 5432":    "denied by policy root/istio_converted_static_strict (matched: notPrincipals)",
		}},
		{"labels and hours", header + `AuthorizationPolicy
metadata: {namespace: data, name: front}
spec:
  rules:
  - when:
    - {key: "source.labels[tier]", values: [front]}
    - {key: request.time, values: ["22:00:00-06:00:00", "12:00:00-13:00:00"]}
`, connections{
			"shop/web 5432 12:30:00":       "allowed by policy data/front",
			"shop/web 5432 23:59:59":       "allowed by policy data/front",
			"shop/web 5432 06:00:00":       "denied: no ALLOW policy matched; closest was data/front (not matched: request.time)",
			"shop/job 5432 12:30:00":       "denied: no ALLOW policy matched; closest was data/front (not matched: source.labels)",
			"plain:shop/web 5432 12:30:00": "denied: no ALLOW policy matched; closest was data/front (not matched: source.labels)",
		}},
		{"labels that deny, of a caller without proof", header + `AuthorizationPolicy
metadata: {namespace: data, name: no-jobs}
spec:
  action: DENY
  rules: [{when: [{key: "source.labels[app]", values: [job]}]}]
`, connections{
			"shop/web 5432": "allowed: no ALLOW policy covers the workload",
			"shop/job 5432": "denied by policy data/no-jobs (matched: source.labels)",
			"plain 5432":    "denied by policy data/no-jobs (matched: source.labels)",
		}},
		{"addresses", header + `AuthorizationPolicy
metadata: {namespace: data, name: blocks}
spec:
  rules:
  - from:
    - source: {ipBlocks: [10.0.0.0/24], notIpBlocks: [10.0.0.2]}
    - source: {remoteIpBlocks: [192.0.2.0/24]}
`, connections{
			"shop/web 5432": "allowed by policy data/blocks",
			"shop/job 5432": "denied: no ALLOW policy matched; closest was data/blocks (not matched: notIpBlocks)",
			"plain 5432":    "allowed by policy data/blocks",
		}},
		{"HTTP, allowed", header + `AuthorizationPolicy
metadata: {namespace: data, name: get}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
`, connections{"shop/web 5432": "denied: no ALLOW policy matched; closest was data/get (not matched: methods (the connection is not HTTP))"}},
		{"HTTP, denied", header + `AuthorizationPolicy
metadata: {namespace: data, name: no-delete}
spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE], ports: ["80"]}}]}]}
`, connections{
			"shop/web 80":   "denied by policy data/no-delete (matched: ports)",
			"shop/web 5432": "allowed: no ALLOW policy covers the workload",
		}},
		{"a value that is wrong, allowed", header + `AuthorizationPolicy
metadata: {namespace: data, name: typo}
spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.0/33, 10.0.0.1]}}]}]}
`, connections{"shop/web 5432": `denied: no ALLOW policy matched; closest was data/typo (not matched: spec.rules[0].from[0].source.ipBlocks[0]: "10.0.0.0/33" is not an address or a CIDR)`}},
		{"a value that is wrong, denied", header + `AuthorizationPolicy
metadata: {namespace: data, name: typo}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["54320000"]}}]}]}
`, connections{"shop/web 5432": `denied by policy data/typo (matched: spec.rules[0].to[0].operation.ports[0]: "54320000" is not a port (1-65535))`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mesh(t, tt.manifests)
			for connection, want := range tt.want {
				r := requestOf(t, s, connection)
				if got := policy.Evaluate(s, &r).String(); got != want {
					t.Errorf("%s:\n got %s\nwant %s", connection, got, want)
				}
			}
		})
	}
}

func mesh(t *testing.T, manifests string) *model.Snapshot {
	t.Helper()
	in := build.PolicyInput{RootNamespace: "root", Workloads: []build.PolicyTarget{
		{UID: "data/db", Namespace: "data", Labels: map[string]string{"app": "db"}},
		{UID: "shop/web", Namespace: "shop", Labels: map[string]string{"app": "web", "tier": "front"}},
		{UID: "shop/job", Namespace: "shop", Labels: map[string]string{"app": "job"}},
	}}
	for _, text := range strings.Split(manifests, "---\n") {
		readManifest(t, text, &in)
	}
	addresses := map[string]string{"data/db": "10.0.0.9", "shop/web": "10.0.0.1", "shop/job": "10.0.0.2"}
	policies := build.Policies(in)
	u := model.Update{Policies: policies.Policies, AddressesComplete: true, PoliciesComplete: true}
	for _, w := range in.Workloads {
		_, account, _ := strings.Cut(w.UID, "/")
		u.Workloads = append(u.Workloads, &model.Workload{
			UID: w.UID, Namespace: w.Namespace, ServiceAccount: account, TrustDomain: model.DefaultTrustDomain,
			Addresses: []netip.Addr{netip.MustParseAddr(addresses[w.UID])},
			Policies:  policies.Attached[w.UID], Labels: policies.Labels(w.Labels),
		})
	}
	return model.NewSnapshot().Apply(u)
}

func readManifest(t *testing.T, text string, in *build.PolicyInput) {
	t.Helper()
	var kind metav1.TypeMeta
	authorization, peer := &securityv1.AuthorizationPolicy{}, &securityv1.PeerAuthentication{}
	err := yaml.Unmarshal([]byte(text), &kind)
	switch {
	case err != nil:
	case kind.Kind == "AuthorizationPolicy":
		err = yaml.Unmarshal([]byte(text), authorization)
		in.AuthorizationPolicies = append(in.AuthorizationPolicies, authorization)
	case kind.Kind == "PeerAuthentication":
		err = yaml.Unmarshal([]byte(text), peer)
		in.PeerAuthentications = append(in.PeerAuthentications, peer)
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func requestOf(t *testing.T, s *model.Snapshot, connection string) policy.Request {
	t.Helper()
	fields := append(strings.Fields(connection), "12:00:00")
	at, err := time.Parse(time.TimeOnly, fields[2])
	if err != nil {
		t.Fatal(err)
	}
	r := policy.Request{
		Source:      netip.MustParseAddr("192.0.2.1"),
		Destination: netip.MustParseAddrPort("10.0.0.9:" + fields[1]),
		Workload:    s.Workload("data/db"), Time: at,
	}
	caller, outside := strings.CutPrefix(fields[0], "plain")
	if w := s.Workload(strings.TrimPrefix(caller, ":")); w != nil {
		r.Source, r.SourceWorkload = w.Addresses[0], w
		if !outside {
			r.Identity = w.Identity()
		}
	}
	return r
}
