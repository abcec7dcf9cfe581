package build

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

func object[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.Unmarshal([]byte(text), out); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return out
}

func strictObject[T any](t *testing.T, text string) *T {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := kinds.Decode[T](data)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return out
}

func TestTargets(t *testing.T) {
	services := []*corev1.Service{
		object[corev1.Service](t, `{metadata: {name: db, namespace: data}, spec: {selector: {app: db}, ports: [{port: 80, targetPort: 8080}, {port: 81}]}}`),
		object[corev1.Service](t, `{metadata: {name: named, namespace: data}, spec: {selector: {app: cache}, ports: [{port: 80, targetPort: http}]}}`),
		object[corev1.Service](t, `{metadata: {name: known, namespace: data}, spec: {selector: {app: cache}, ports: [{port: 80, targetPort: web}]}}`),
		object[corev1.Service](t, `{metadata: {name: bare, namespace: data}}`),
	}
	workloads := []PolicyTarget{
		{UID: "db", Namespace: "data", Name: "db-1", OwnerKind: "StatefulSet", OwnerName: "db", Labels: map[string]string{"app": "db"}, Ports: map[uint16]model.AppProtocol{8080: model.AppHTTP11, 5432: model.AppTCP}},
		{UID: "cache", Namespace: "data", Name: "cache", OwnerKind: "Deployment", OwnerName: "db", Labels: map[string]string{"app": "cache"}},
		{UID: "other", Namespace: "shop", Name: "db-1", OwnerKind: "StatefulSet", OwnerName: "db", Labels: map[string]string{"app": "db"}},
	}
	for _, test := range []struct {
		refs     string
		attached string
		ports    string
		message  string
		none     bool
	}{
		{refs: "{kind: Service, name: db}", attached: "db", ports: "[81 8080]"},
		{refs: "{kind: Service, group: core, name: named}", attached: "cache", ports: "[]", message: "no pod has the target port http"},
		{refs: "{kind: Service, name: db}, {kind: Service, name: named}", attached: "cache db", ports: "[]"},
		{refs: "{kind: Service, name: db}, {kind: Pod, name: cache}", attached: "cache db", ports: "[]"},
		{refs: "{kind: StatefulSet, group: apps, name: db}", attached: "db", ports: "[]"},
		{refs: "{kind: Deployment, group: apps, name: db}", attached: "cache", ports: "[]"},
		{refs: "{kind: Pod, name: db-1}", attached: "db", ports: "[]"},
		{refs: "{kind: Service, name: known}", attached: "cache", ports: "[8080 9090]"},
		{refs: "{kind: Service, name: known}, {kind: Service, name: db}", attached: "cache db", ports: "[81 8080 9090]"},
		{refs: "{kind: Service, name: bare}", ports: "[]", message: "no Service bare that selects pods"},
		{refs: "{kind: Service, name: none}", ports: "[]", message: "no Service none"},
		{refs: "{kind: Service, name: db, namespace: shop}", ports: "[]", message: "another namespace"},
		{refs: "{kind: ServiceEntry, group: networking.istio.io, name: x}", none: true, message: "proxy of its own"},
	} {
		r := Policies(PolicyInput{
			AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, "targetRefs: ["+test.refs+"]\nrules: [{to: [{operation: {methods: [GET]}}]}]")},
			Services:              services, Workloads: workloads,
			PortNumbers: map[string]map[string][]uint16{"data": {"web": {8080, 9090}}, "shop": {"http": {80}}},
		})
		var attached []string
		for _, w := range workloads {
			if len(r.Attached[w.UID]) > 0 {
				attached = append(attached, w.UID)
			}
		}
		messages := strings.Join(r.Statuses[0].Messages, "\n")
		if test.none {
			if len(r.Policies) > 0 || r.Statuses[0].Enforced || !strings.Contains(messages, test.message) {
				t.Errorf("%s: %d policies, %q", test.refs, len(r.Policies), messages)
			}
			continue
		}
		want := strings.Fields(test.attached)
		if len(attached) != len(want) || !strings.Contains(messages, test.message) || fmt.Sprint(r.Policies[0].Ports) != test.ports {
			t.Errorf("%s: attached to %v on ports %v, %q", test.refs, attached, r.Policies[0].Ports, messages)
		}
		for _, uid := range want {
			if len(r.Attached[uid]) == 0 {
				t.Errorf("%s: not attached to %s", test.refs, uid)
			}
		}
		if test.ports == "[81 8080]" {
			if diff := cmp.Diff([]string{"8080/L7"}, r.Statuses[0].Ports); diff != "" || r.Statuses[0].Layer != "L7" {
				t.Errorf("%s: %s %s", test.refs, r.Statuses[0].Layer, diff)
			}
		}
	}
}

func jwks(t *testing.T) (public, private string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write := func(key any) string {
		text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key, KeyID: "k"}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	return write(key.Public()), write(key)
}

func TestRequestAuthentication(t *testing.T) {
	public, private := jwks(t)
	build := func(rules string, sets map[string]string) (*model.Policy, PolicyResult) {
		r := Policies(PolicyInput{KeySets: sets, RequestAuthentications: []*securityv1.RequestAuthentication{
			object[securityv1.RequestAuthentication](t, "metadata: {name: r, namespace: data}\nspec: {jwtRules: ["+rules+"]}"),
		}})
		return r.Policies[0], r
	}
	p, r := build(`{issuer: i, audiences: [a], jwks: '`+private+`', fromHeaders: [{name: X, prefix: "p "}], fromParams: [q], fromCookies: [c], forwardOriginalToken: true,
		outputPayloadToHeader: x-p, outputClaimToHeaders: [{header: x-c, claim: a.b}], spaceDelimitedClaims: [s]}`, nil)
	want := model.JWTRule{
		Issuer: "i", Audiences: []string{"a"}, Keys: public, FromHeaders: []model.JWTHeader{{Name: "X", Prefix: "p "}}, FromParams: []string{"q"},
		FromCookies: []string{"c"}, Forward: true, PayloadHeader: "x-p", ClaimHeaders: []model.ClaimHeader{{Header: "x-c", Claim: "a.b"}}, SpaceDelimited: []string{"s"},
	}
	if diff := cmp.Diff([]model.JWTRule{want}, p.Authentication.Rules); diff != "" || p.Key() != "data/request_authentication_r" || p.Action != model.ActionAuthenticate || len(r.Statuses[0].Messages) > 0 {
		t.Errorf("%s, action %d, %v; -want +got (only public parts may be there):\n%s", p.Key(), p.Action, r.Statuses[0].Messages, diff)
	}
	p, r = build(`{issuer: "https://i", jwksUri: "https://i/keys", timeout: 1s}, {issuer: "https://j", timeout: 0s}, {issuer: "https://i", jwksUri: "https://i/keys", timeout: 3s}`, map[string]string{"https://i/keys": "K"})
	if diff := cmp.Diff([]KeySource{{"https://i", "https://i/keys", 3 * time.Second}, {"https://j", "", 0}}, r.KeySources); diff != "" || p.Authentication.Rules[0].Keys != "K" || p.Authentication.Rules[1].Keys != "" {
		t.Errorf("sources (-want +got):\n%s\n%+v", diff, p.Authentication)
	}
	if got := strings.Join(r.Statuses[0].Messages, "\n"); !strings.Contains(got, "spec.jwtRules[1]: the keys of issuer https://j have not been fetched") || !strings.Contains(got, "spec.jwtRules[1].timeout: not above 0") {
		t.Errorf("messages %q", got)
	}
	if p, _ = build(`{}`, nil); p.Action != model.ActionDeny || p.Unknown == "" {
		t.Errorf("without an issuer: %+v", p)
	}
	for _, bad := range []string{"", "{}", `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, `{"keys":[{"kty":"RSA"}]}`, "[]"} {
		if keys, err := PublicKeys([]byte(bad)); err == nil {
			t.Errorf("%s: taken for %s", bad, keys)
		}
	}
}

func TestRateLimits(t *testing.T) {
	store := &model.LimitStore{Host: "redis", Port: 6379}
	r := Policies(PolicyInput{Store: store, RateLimits: []*kinds.RateLimit{strictObject[kinds.RateLimit](t, `
metadata: {name: l, namespace: data, annotations: {tacit.mesh/dry-run: "true"}}
spec:
  shared: true
  selector: {matchExpressions: [{key: app, operator: In, values: [db, cache]}]}
  limits:
  - {requests: 10, interval: 1s, burst: 20, per: {claim: a.b}, rules: [{to: [{operation: {paths: [/x]}}]}]}
  - {connections: 5, interval: 1m, per: {identity: true}}
  - {bytes: 5, requests: 3, interval: 1s}
  - {bytes: 1000, interval: 500ms}
  - {connections: 1, interval: 1s, per: {header: x}}
`)}, Workloads: []PolicyTarget{{UID: "db", Namespace: "data", Labels: map[string]string{"app": "db"}}}})
	p := r.Policies[0]
	want := []model.Limit{
		{Amount: 10, Interval: time.Second, Burst: 20, Per: model.LimitPerClaim, Key: "a.b", Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{HTTP: &model.HTTPMatch{Paths: []model.StringMatch{{Value: "/x"}}}}}}}}}},
		{Unit: model.LimitConnections, Amount: 5, Interval: time.Minute, Burst: 5, Per: model.LimitPerIdentity},
		{Unit: model.LimitBytes, Amount: 1000, Interval: 500 * time.Millisecond, Burst: 1000},
	}
	if diff := cmp.Diff(want, p.RateLimit.Limits); diff != "" || p.RateLimit.Store != store || !p.DryRun || p.Key() != "data/rate_limit_l" || len(r.Attached["db"]) != 1 {
		t.Errorf("%+v, attached %v (-want +got):\n%s", p, r.Attached, diff)
	}
	messages := strings.Join(r.Statuses[0].Messages, "\n")
	for _, want := range []string{"spec.limits[2]: not enforced: one of requests", "spec.limits[4]: not enforced: per: headers and claims are of requests"} {
		if !strings.Contains(messages, want) {
			t.Errorf("messages %q, want %q", messages, want)
		}
	}
	if _, err := kinds.Decode[kinds.RateLimit]([]byte(`{"spec":{"limits":[{"request":1}]}}`)); err == nil {
		t.Error("an unknown field is passed over")
	}
	if _, err := kinds.Decode[kinds.RateLimit]([]byte(`{"spec":{"limits":[{"rules":[{"form":[]}]}]}}`)); err == nil {
		t.Error("an unknown field of a rule is passed over")
	}
}

// The example of Linkerd's reference.
func TestLinkerdRateLimit(t *testing.T) {
	policy := strictObject[kinds.HTTPLocalRateLimitPolicy](t, `
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {namespace: emojivoto, name: web-rl}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: web-http}
  total: {requestsPerSecond: 100}
  identity: {requestsPerSecond: 20}
  overrides:
  - requestsPerSecond: 25
    clientRefs: [{kind: ServiceAccount, namespace: emojivoto, name: special-client}]
`)
	server := object[kinds.Server](t, `{metadata: {namespace: emojivoto, name: web-http}, spec: {podSelector: {matchLabels: {app: web}}, port: 8080, proxyProtocol: HTTP/1}}`)
	r := Policies(PolicyInput{
		LinkerdRateLimits: []*kinds.HTTPLocalRateLimitPolicy{policy}, Servers: []*kinds.Server{server},
		Workloads: []PolicyTarget{{UID: "web", Namespace: "emojivoto", Labels: map[string]string{"app": "web"}}},
	})
	special := []model.ServiceAccount{{Namespace: "emojivoto", Name: "special-client"}}
	one := func(m model.Match) []model.Rule {
		return []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{m}}}}}
	}
	limit := func(amount uint64, per model.LimitKey, rules []model.Rule) model.Limit {
		return model.Limit{Amount: amount, Burst: amount, Interval: time.Second, Per: per, Rules: rules, PerWorkload: true}
	}
	want := []model.Limit{
		limit(100, model.LimitTotal, nil),
		limit(25, model.LimitPerIdentity, one(model.Match{ServiceAccounts: special})),
		limit(20, model.LimitPerIdentity, one(model.Match{NotServiceAccounts: special})),
	}
	p := r.Policies[0]
	if diff := cmp.Diff(want, p.RateLimit.Limits); diff != "" || fmt.Sprint(p.Ports) != "[8080]" || len(r.Attached["web"]) != 1 || !r.Statuses[0].Enforced {
		t.Errorf("ports %v, attached %v (-want +got):\n%s", p.Ports, r.Attached, diff)
	}
	server.Spec.Port = intstr.FromString("http")
	r = Policies(PolicyInput{
		LinkerdRateLimits: []*kinds.HTTPLocalRateLimitPolicy{policy}, Servers: []*kinds.Server{server},
		PortNumbers: map[string]map[string][]uint16{"emojivoto": {"http": {8080}}},
		Workloads:   []PolicyTarget{{UID: "web", Namespace: "emojivoto", Labels: map[string]string{"app": "web"}}},
	})
	if p := r.Policies[0]; fmt.Sprint(p.Ports) != "[8080]" || len(r.Statuses[0].Messages) > 0 {
		t.Errorf("of a Server whose port has a name: ports %v, %v", p.Ports, r.Statuses)
	}
	r = Policies(PolicyInput{LinkerdRateLimits: []*kinds.HTTPLocalRateLimitPolicy{policy}})
	if len(r.Policies) > 0 || !strings.Contains(r.Statuses[0].Messages[0], "no Server emojivoto/web-http") {
		t.Errorf("without its Server: %v", r.Statuses)
	}
}

// The original client's address is the connection's, unless somebody is trusted
// to tell another.
func TestRemoteAddresses(t *testing.T) {
	in := PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, `action: DENY
rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8], notRemoteIpBlocks: [10.1.0.0/16], ipBlocks: [192.0.2.1]}}], when: [{key: remote.ip, values: [10.0.0.1]}]}]`)}}
	if r := Policies(in); r.Policies[0].Rules[0].Clauses[0].Matches[0].HTTP != nil || r.Statuses[0].Layer != "L4" || !strings.Contains(r.Statuses[0].Messages[0], "compared with the connection's source address") {
		t.Errorf("nobody is trusted: %+v, %+v", r.Policies[0], r.Statuses)
	}
	in.Forwarding = model.Forwarding{Proxies: 2, Callers: []model.StringMatch{{Value: "td/ns/ingress/sa/gateway"}}}
	r := Policies(in)
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	want := []model.Clause{
		{Matches: []model.Match{{
			SourceIPs: prefixes("192.0.2.1/32"),
			HTTP:      &model.HTTPMatch{RemoteIPs: prefixes("10.0.0.0/8"), NotRemoteIPs: prefixes("10.1.0.0/16"), Forwarding: in.Forwarding},
		}}},
		{Matches: []model.Match{{HTTP: &model.HTTPMatch{RemoteIPs: prefixes("10.0.0.1/32"), Forwarding: in.Forwarding}}}},
	}
	if diff := cmp.Diff(want, r.Policies[0].Rules[0].Clauses, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || r.Statuses[0].Layer != "L7" || len(r.Statuses[0].Messages) > 0 {
		t.Errorf("%+v (-want +got):\n%s", r.Statuses, diff)
	}
	in.AuthorizationPolicies = []*securityv1.AuthorizationPolicy{authorization(t, `rules: [{from: [{source: {principals: [td/ns/a/sa/b]}}]}]`)}
	if r := Policies(in); r.Policies[0].Rules[0].Clauses[0].Matches[0].HTTP != nil || r.Statuses[0].Layer != "L4" {
		t.Errorf("a policy that names no address: %+v, %+v", r.Policies[0], r.Statuses)
	}
}

func TestCustomTakesAProvider(t *testing.T) {
	provider := &model.Provider{Name: "x"}
	in := PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, "action: CUSTOM\nprovider: {name: x}\nrules: [{}]")}}
	if p := Policies(in).Policies[0]; p.Action != model.ActionDeny || p.Provider != nil {
		t.Errorf("without the provider: %+v", p)
	}
	in.Providers = map[string]*model.Provider{"x": provider}
	if p := Policies(in).Policies[0]; p.Action != model.ActionCustom || p.Provider != provider {
		t.Errorf("with it: %+v", p)
	}
}
