package policy_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

var update = flag.Bool("update", false, "write the generated page")

// field is one list of a rule, with values that the request below has and has
// not. Each of its negations is tried with the same values.
type field struct {
	name, not string // as in the page
	layer     string
	rule      string // of the values, in place of VALUES
	notRule   string
	fits      []string // each matches alone
	misses    []string // none matches
	note      string
}

const never = "never"

func from(name string) (string, string) {
	not := "not" + strings.ToUpper(name[:1]) + name[1:]
	return "from: [{source: {" + name + ": VALUES}}]", "from: [{source: {" + not + ": VALUES}}]"
}

func to(name string) (string, string) {
	not := "not" + strings.ToUpper(name[:1]) + name[1:]
	return "to: [{operation: {" + name + ": VALUES}}]", "to: [{operation: {" + not + ": VALUES}}]"
}

func when(key string) (string, string) {
	return `when: [{key: "` + key + `", values: VALUES}]`, `when: [{key: "` + key + `", notValues: VALUES}]`
}

func list(name, layer string, both func(string) (string, string), fits, misses []string, note string) field {
	rule, notRule := both(name)
	return field{name: name, not: "its not form", layer: layer, rule: rule, notRule: notRule, fits: fits, misses: misses, note: note}
}

func words(s string) []string { return strings.Fields(s) }

// fields are all of a rule, from the reference of AuthorizationPolicy and of
// its conditions, each with every operator.
func fields() map[string][]field {
	const principal = "cluster.local/ns/shop/sa/web"
	return map[string][]field{
		"from.source": {
			list("principals", "L4", from, words("cluster.local/ns/shop/sa/web cluster.local/ns/shop/* */sa/web * spiffe://"+principal), words("cluster.local/ns/shop/sa/we td/* */sa/job"), "A leading spiffe:// is taken off."),
			list("requestPrincipals", "L7", from, words("https://issuer/me https://issuer/* */me *"), words("https://issuer/you https://other/* */you"), ""),
			list("namespaces", "L4", from, words("shop sh* *op *"), words("shops a* *b"), ""),
			list("serviceAccounts", "L4", from, words("shop/web"), words("web shop/job"), "NAMESPACE/NAME, or NAME in the policy's namespace."),
			list("ipBlocks", "L4", from, words("10.0.0.1 10.0.0.0/24"), words("10.0.0.2 192.0.2.0/24 ::/0"), ""),
			list("remoteIpBlocks", "L4", from, words("10.0.0.1 10.0.0.0/24"), words("10.0.0.2 192.0.2.0/24"), "The connection's own address. With `trustedProxies` in the mesh's configuration, at L7: the client's, by X-Forwarded-For from these alone."),
			list("trustDomains", "L4", from, words("cluster.local cluster* *"), words("cluster td*"), "No suffix, and not beside principals."),
		},
		"to.operation": {
			list("hosts", "L7", to, words("example.com EXAMPLE.com exam* *.COM *"), words("example.org a* *.org"), "With the port if the client sends one. DENY also compares without it."),
			list("ports", "L4", to, words("8080"), words("80"), ""),
			list("methods", "L7", to, words("GET G* *ET *"), words("get POST P* *ST"), ""),
			list("paths", "L7", to, words("/a/b.js /a/* *.js * /a/{*} /{*}/{*} /a/{**} /{**}"), words("/a/b /b/* *.css /{*} /a/{*}/c /a/{*}/{**} /a/{**}/"), "Normalised, without the query. {**} stands for any text: what follows it is where the path ends."),
		},
		"when": {
			list("source.ip", "L4", when, words("10.0.0.1 10.0.0.0/24"), words("10.0.0.2"), ""),
			list("remote.ip", "L4", when, words("10.0.0.1 10.0.0.0/24"), words("10.0.0.2"), "The connection's own address. With `trustedProxies` in the mesh's configuration, at L7: the client's, by X-Forwarded-For from these alone."),
			list("source.namespace", "L4", when, words("shop sh* *op *"), words("data"), ""),
			list("source.principal", "L4", when, words(principal+" cluster* *web *"), words("cluster.local/ns/shop/sa/job"), ""),
			list("source.serviceAccount", "L4", when, words("shop/web"), words("web"), ""),
			list("source.trustDomain", "L4", when, words("cluster.local cluster* *"), words("td"), "No suffix, and not beside principals."),
			list("source.labels[app]", "L4", when, words("web w* *b *"), words("db"), "Not Istio's: a label of the caller's pod."),
			list("destination.ip", "L4", when, words("10.0.0.9 10.0.0.0/24"), words("10.0.0.8"), ""),
			list("destination.port", "L4", when, words("8080"), words("80"), ""),
			list("request.time", "L4", when, words("11:00:00-13:00:00 12:00:00-12:00:01"), words("13:00:00-11:00:00"), "Not Istio's: a daily window in UTC."),
			list("request.headers[X-User]", "L7", when, words("alice al* *ce *"), words("bob b* *b"), "Of a header with several lines, ALLOW wants all to match, DENY one."),
			list("request.auth.principal", "L7", when, words("https://issuer/me https://issuer/* */me *"), words("https://issuer/you"), ""),
			list("request.auth.audiences", "L7", when, words("shop s* *op *"), words("bank"), ""),
			list("request.auth.presenter", "L7", when, words("app a* *p *"), words("bank"), "The claim azp."),
			list("request.auth.claims[scope]", "L7", when, words("read w* *te *"), words("admin"), "Text, or a list of texts; scope and permission are separated by blanks."),
			list("request.auth.claims[realm][roles]", "L7", when, words("boss b* *ss *"), words("clerk"), ""),
			list("connection.sni", "L7", when, words("db.example db* *.example *"), words("web.example"), "The name in the ClientHello, where a connection begins with one."),
			{name: "experimental.envoy.filters.*", layer: never, rule: `when: [{key: "experimental.envoy.filters.a[b]", values: VALUES}]`, misses: words("x"), note: "There is no Envoy: ALLOW does not match by it, DENY does."},
		},
	}
}

// asked is the request that fields are about.
func asked() policy.Request {
	id := model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	return policy.Request{
		Source: netip.MustParseAddr("10.0.0.1"), Identity: id, Destination: netip.MustParseAddrPort("10.0.0.9:8080"),
		SourceWorkload: &model.Workload{TrustDomain: id.TrustDomain, Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Labels: map[string]string{"app": "web"}},
		Workload:       fieldsTarget, Time: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), ServerName: "db.example",
		HTTP: &policy.HTTPRequest{
			Method: "GET", Path: "/a/b.js", Host: "example.com", Headers: []policy.HeaderField{{Name: "x-user", Value: "alice"}},
			Claims: policy.NewClaims(map[string]any{
				"iss": "https://issuer", "sub": "me", "aud": []any{"shop"}, "azp": "app", "scope": "read write",
				"realm": map[string]any{"roles": []any{"boss"}},
			}, nil),
		},
	}
}

var fieldsTarget = &model.Workload{UID: "k//Pod/data/db", Namespace: "data", ServiceAccount: "db", TrustDomain: "cluster.local", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}

// allows says what a policy of one rule makes of a request.
func allows(t *testing.T, action, rule string, values []string, r policy.Request) bool {
	t.Helper()
	quoted := make([]string, 0, len(values))
	for _, v := range values {
		quoted = append(quoted, fmt.Sprintf("%q", v))
	}
	text := "metadata: {name: p, namespace: data}\nspec: {action: " + action + ", rules: [{" + strings.ReplaceAll(rule, "VALUES", "["+strings.Join(quoted, ", ")+"]") + "}]}"
	obj := &securityv1.AuthorizationPolicy{}
	if err := yaml.Unmarshal([]byte(text), obj); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	built := build.Policies(build.PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}})
	s := model.NewSnapshot().Apply(model.Update{Workloads: []*model.Workload{fieldsTarget}, Policies: built.Policies, PoliciesComplete: true})
	return policy.Evaluate(s, &r).Allowed
}

func TestEveryField(t *testing.T) {
	opaque := asked()
	opaque.HTTP, opaque.ServerName = nil, ""
	for place, list := range fields() {
		for _, f := range list {
			check := func(rule string, values []string, matches bool) {
				t.Helper()
				if got := allows(t, "ALLOW", rule, values, asked()); got != matches {
					t.Errorf("%s.%s %v: ALLOW %s: allowed %v", place, f.name, values, rule, got)
				}
				if got := allows(t, "DENY", rule, values, asked()); got == matches && f.layer != never {
					t.Errorf("%s.%s %v: DENY %s: allowed %v", place, f.name, values, rule, got)
				}
				if f.layer == "L4" {
					return
				}
				if allows(t, "ALLOW", rule, values, opaque) || allows(t, "DENY", rule, values, opaque) {
					t.Errorf("%s.%s %v: %s: a connection without requests is let through", place, f.name, values, rule)
				}
			}
			for _, v := range f.fits {
				check(f.rule, []string{v}, true)
				check(f.notRule, []string{v}, false)
			}
			check(f.rule, f.misses, false)
			if f.notRule != "" {
				check(f.notRule, f.misses, true)
				check(f.rule, append(slices.Clone(f.misses), f.fits[0]), true)
				check(f.notRule, append(slices.Clone(f.misses), f.fits[0]), false)
			}
		}
	}
}

// Every field of Istio's messages is in the table.
func TestNoFieldIsForgotten(t *testing.T) {
	table := fields()
	for place, message := range map[string]proto.Message{"from.source": &securityv1beta1.Source{}, "to.operation": &securityv1beta1.Operation{}} {
		have := map[string]bool{}
		for _, f := range table[place] {
			have[f.name], have["not"+strings.ToUpper(f.name[:1])+f.name[1:]] = true, true
		}
		list := message.ProtoReflect().Descriptor().Fields()
		for i := range list.Len() {
			if name := list.Get(i).JSONName(); !have[name] {
				t.Errorf("%s.%s is not in the table", place, name)
			}
		}
	}
	have := map[string]bool{}
	for _, l := range otherFields {
		have[l[0]] = true
	}
	for prefix, message := range map[string]proto.Message{"AuthorizationPolicy.": &securityv1beta1.AuthorizationPolicy{}, "RequestAuthentication.": &securityv1beta1.RequestAuthentication{}, "jwtRules.": &securityv1beta1.JWTRule{}} {
		list := message.ProtoReflect().Descriptor().Fields()
		for i := range list.Len() {
			if name := prefix + list.Get(i).JSONName(); !have[name] {
				t.Errorf("%s is not in the table", name)
			}
		}
	}
}

// otherFields are those outside of rules, and where each counts. Their tests
// are those of xds/build, proxy/jwt and proxy/http.
var otherFields = [][3]string{
	{"AuthorizationPolicy.selector", "L4", ""},
	{"AuthorizationPolicy.targetRef", "L4", "As targetRefs."},
	{"AuthorizationPolicy.targetRefs", "L4", "A Service (on its target ports), or not Istio's: a Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob. Never a Gateway, GatewayClass or ServiceEntry."},
	{"AuthorizationPolicy.rules", "L4", ""},
	{"AuthorizationPolicy.action", "L4", "CUSTOM: L7. What it matches is denied where it cannot be asked."},
	{"AuthorizationPolicy.provider", "L7", "From the mesh's configuration, extensionProviders. Of a body it sees 1 MiB at most."},
	{"RequestAuthentication.selector", "L7", ""},
	{"RequestAuthentication.targetRef", "L7", "As targetRefs."},
	{"RequestAuthentication.targetRefs", "L7", "As of AuthorizationPolicy."},
	{"RequestAuthentication.jwtRules", "L7", "RS, PS and ES 256 to 512, EdDSA; never none, never a shared secret."},
	{"jwtRules.issuer", "L7", ""},
	{"jwtRules.audiences", "L7", "None: any audience."},
	{"jwtRules.jwksUri", "L7", "https alone; fetched by tacitd. Neither this nor jwks: where the issuer's OpenID configuration says."},
	{"jwtRules.jwks", "L7", ""},
	{"jwtRules.fromHeaders", "L7", ""},
	{"jwtRules.fromParams", "L7", ""},
	{"jwtRules.fromCookies", "L7", ""},
	{"jwtRules.outputPayloadToHeader", "L7", "Also taken off requests that come with it, in any case and with _ for -."},
	{"jwtRules.outputClaimToHeaders", "L7", "Also taken off requests that come with them, in any case and with _ for -."},
	{"jwtRules.forwardOriginalToken", "L7", ""},
	{"jwtRules.spaceDelimitedClaims", "L7", ""},
	{"jwtRules.timeout", "L7", "Of a fetch by tacitd, for which no request waits: 5 s if not given, 15 s at most."},
}

const page = "../../docs/policy-fields.md"

// The page is what the tables say.
func TestPageIsCurrent(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Fields of policies\n\nWhere each field of Istio's policies is enforced: for every connection (L4), on ports where requests of HTTP are read (L7), or never.\n" +
		"Every field of a rule has its negation (`notValues` of a condition), enforced in the same place. Strings match exactly, by prefix\n(`a*`), by suffix (`*a`) or if they are not empty (`*`). Made by `go test ./proxy/policy -run TestPageIsCurrent -update`.\n")
	for _, place := range []string{"from.source", "to.operation", "when"} {
		fmt.Fprintf(&b, "\n## %s\n\n| field | enforced at | matches, for example | |\n|---|---|---|---|\n", place)
		for _, f := range fields()[place] {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.layer, code(f.fits), f.note)
		}
	}
	b.WriteString("\n## Other fields\n\n| field | enforced at | |\n|---|---|---|\n")
	for _, f := range otherFields {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f[0], f[1], f[2])
	}
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(page); err != nil || string(have) != b.String() {
		t.Errorf("%s is not what the tables say (%v): run this test with -update", page, err)
	}
}

func code(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return "`" + strings.Join(values, "` `") + "`"
}
