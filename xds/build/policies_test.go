package build

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/model"
)

// authorization reads the spec of data/p.
func authorization(t *testing.T, spec string) *securityv1.AuthorizationPolicy {
	t.Helper()
	obj := &securityv1.AuthorizationPolicy{}
	obj.Namespace, obj.Name = "data", "p"
	if err := yaml.Unmarshal([]byte("spec:\n"+indent(spec)), obj); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	return obj
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}

// words renders rules: matches of a clause are joined by "or", clauses by
// "and", a rule without clauses is "always".
func words(rules []model.Rule) []string {
	var out []string
	for _, r := range rules {
		var clauses []string
		for _, c := range r.Clauses {
			var matches []string
			for _, m := range c.Matches {
				matches = append(matches, matchWords(m))
			}
			clauses = append(clauses, strings.Join(matches, " or "))
		}
		text := strings.Join(clauses, " and ")
		switch {
		case r.Unknown != "":
			text = "unknown (" + r.Unknown + ")"
		case text == "":
			text = "always"
		}
		out = append(out, text)
	}
	return out
}

func matchWords(m model.Match) string {
	parts := listWords(m)
	if m.HTTP != nil {
		parts = append(parts, listWords(*m.HTTP)...)
	}
	if m.Unknown != "" {
		return "unknown (" + m.Unknown + ")"
	}
	if parts == nil {
		return "never"
	}
	return strings.Join(parts, " ")
}

func listWords(lists any) (parts []string) {
	for i, v := 0, reflect.ValueOf(lists); i < v.NumField(); i++ {
		if f := v.Field(i); f.Kind() == reflect.Slice && f.Len() > 0 {
			parts = append(parts, v.Type().Field(i).Name+fmt.Sprint(f.Interface()))
		}
	}
	return parts
}

func TestRules(t *testing.T) {
	tests := []struct {
		name     string
		spec     string
		want     []string
		messages []string
	}{
		{name: "no rules", spec: "action: ALLOW"},
		{name: "empty rule", spec: "rules: [{}]", want: []string{"always"}},
		{
			name: "source", spec: `
rules:
- from:
  - source:
      principals: [cluster.local/ns/a/sa/b, "spiffe://td/ns/c/*"]
      notPrincipals: ["*/sa/x"]
      namespaces: [a, "b*"]
      notNamespaces: ["*"]
      ipBlocks: [10.0.0.0/8, 192.0.2.1]
      notIpBlocks: [10.1.2.3/16]
  - source:
      serviceAccounts: [web, shop/api]
      notServiceAccounts: [x/y]`,
			want: []string{"Namespaces[a b*] NotNamespaces[*] Principals[cluster.local/ns/a/sa/b td/ns/c/*] NotPrincipals[*/sa/x] SourceIPs[10.0.0.0/8 192.0.2.1/32] NotSourceIPs[10.1.0.0/16]" +
				" or ServiceAccounts[{data web} {shop api}] NotServiceAccounts[{x y}]"},
		},
		{
			name: "operation", spec: `rules: [{to: [{operation: {ports: ["80", "443"], notPorts: ["81"]}}]}]`,
			want: []string{"DestinationPorts[80 443] NotDestinationPorts[81]"},
		},
		{
			name: "from and to", spec: `rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ["80"]}}]}]`,
			want: []string{"Namespaces[a] and DestinationPorts[80]"},
		},
		{
			name: "conditions", spec: `
rules:
- when:
  - {key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1]}
  - {key: source.namespace, values: [a], notValues: [b]}
  - {key: source.principal, values: [td/ns/a/sa/b], notValues: ["*"]}
  - {key: source.serviceAccount, values: [web], notValues: [a/b]}
  - {key: source.trustDomain, values: [td, "td*"], notValues: ["*"]}
  - {key: destination.ip, values: ["fd00::/8"], notValues: ["fd00::1"]}
  - {key: destination.port, values: ["80"], notValues: ["81"]}
  - {key: "source.labels[app.kubernetes.io/name]", values: [web, "w*"], notValues: [db]}
  - {key: request.time, values: ["22:00:00-06:30:15"], notValues: ["12:00:00-24:00:00"]}`,
			want: []string{"SourceIPs[10.0.0.0/8] NotSourceIPs[10.0.0.1/32]" +
				" and Namespaces[a] NotNamespaces[b]" +
				" and Principals[td/ns/a/sa/b] NotPrincipals[*]" +
				" and ServiceAccounts[{data web}] NotServiceAccounts[{a b}]" +
				" and Principals[td/* td*] NotPrincipals[*]" +
				" and DestinationIPs[fd00::/8] NotDestinationIPs[fd00::1/128]" +
				" and DestinationPorts[80] NotDestinationPorts[81]" +
				" and SourceLabels[{app.kubernetes.io/name [web w*]}] NotSourceLabels[{app.kubernetes.io/name [db]}]" +
				" and Times[{22h0m0s 6h30m15s}] NotTimes[{12h0m0s 0s}]"},
		},
		{
			name: "remote addresses", spec: `
rules:
- from: [{source: {remoteIpBlocks: [10.0.0.0/8], notRemoteIpBlocks: [10.1.0.0/16], notIpBlocks: [10.2.0.0/16]}}]
- from: [{source: {remoteIpBlocks: [10.0.0.0/8, 10.9.0.0/16], ipBlocks: [10.1.0.0/16, 192.0.2.0/24]}}]
- from: [{source: {remoteIpBlocks: [10.0.0.0/8], ipBlocks: [192.0.2.0/24]}}]
- when: [{key: remote.ip, values: [10.0.0.1]}]
- from: [{source: {remoteIpBlocks: [10.0.0.0/8], ipBlocks: [192.0.2.0/24], namespaces: [a]}}]`,
			want: []string{
				"SourceIPs[10.0.0.0/8] NotSourceIPs[10.2.0.0/16 10.1.0.0/16]",
				"SourceIPs[10.1.0.0/16]",
				"never",
				"SourceIPs[10.0.0.1/32]",
				"never",
			},
			messages: []string{
				"spec.rules[0].from[0].source: compared with the connection's source address; X-Forwarded-For is read where the mesh's configuration says trustedProxies, the PROXY protocol is not",
				"spec.rules[1].from[0].source: compared with the connection's source address; X-Forwarded-For is read where the mesh's configuration says trustedProxies, the PROXY protocol is not",
				"spec.rules[2].from[0].source: compared with the connection's source address; X-Forwarded-For is read where the mesh's configuration says trustedProxies, the PROXY protocol is not",
				"spec.rules[3].when[0]: compared with the connection's source address; X-Forwarded-For is read where the mesh's configuration says trustedProxies, the PROXY protocol is not",
				"spec.rules[4].from[0].source: compared with the connection's source address; X-Forwarded-For is read where the mesh's configuration says trustedProxies, the PROXY protocol is not",
			},
		},
		{
			name: "requests", spec: `
rules:
- to:
  - operation:
      methods: [GET, "P*"]
      notMethods: [PUT]
      paths: [/a, "/b*", "*.js", "/c/{*}/{**}"]
      notPaths: ["*"]
      hosts: ["*.example.com"]
      notHosts: [x]
      ports: ["80"]
- from: [{source: {requestPrincipals: [iss/sub], notRequestPrincipals: ["*"], namespaces: [a]}}]
- when:
  - {key: request.auth.principal, values: ["*"], notValues: [iss/sub]}
  - {key: request.auth.audiences, values: [a], notValues: [b]}
  - {key: request.auth.presenter, values: [a], notValues: [b]}
  - {key: "request.headers[X-A]", values: [a], notValues: [b]}
  - {key: "request.auth.claims[a][b.c]", values: [a], notValues: [b]}
  - {key: connection.sni, values: [a], notValues: [b]}`,
			want: []string{
				"DestinationPorts[80] Methods[GET P*] NotMethods[PUT] Paths[/a /b* *.js /c/{*}/{**}] NotPaths[*] Hosts[*.example.com] NotHosts[x]",
				"Namespaces[a] RequestPrincipals[iss/sub] NotRequestPrincipals[*]",
				"RequestPrincipals[*] NotRequestPrincipals[iss/sub]" +
					" and Audiences[a] NotAudiences[b]" +
					" and Presenters[a] NotPresenters[b]" +
					" and Headers[{X-A [a]}] NotHeaders[{X-A [b]}]" +
					" and Claims[{[a b.c] [a]}] NotClaims[{[a b.c] [b]}]" +
					" and ServerNames[a] NotServerNames[b]",
			},
		},
		{
			name: "nothing given", spec: `
action: DENY
rules:
- from: [{source: {}}, {}]
- to: [{operation: {}}]
- when: [{key: source.ip}]`,
			want: []string{
				"unknown (spec.rules[0].from[0].source: no attribute is given) or unknown (spec.rules[0].from[1].source: no attribute is given)",
				"unknown (spec.rules[1].to[0].operation: no attribute is given)",
				"unknown (spec.rules[2].when[0]: no attribute is given)",
			},
			messages: []string{
				"spec.rules[0].from[0].source: no attribute is given: this alternative matches always",
				"spec.rules[0].from[1].source: no attribute is given: this alternative matches always",
				"spec.rules[1].to[0].operation: no attribute is given: this alternative matches always",
				"spec.rules[2].when[0]: no attribute is given: this alternative matches always",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, tt.spec)}})
			if diff := cmp.Diff(tt.want, words(r.Policies[0].Rules)); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.messages, r.Statuses[0].Messages); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
			if !r.Statuses[0].Enforced {
				t.Error("status says that it is not enforced")
			}
		})
	}
}

// Each value that is not understood makes its match unknown, and the status
// names the very field.
func TestInvalidValues(t *testing.T) {
	source := func(field, value string) string { return fmt.Sprintf("from: [{source: {%s: [%q]}}]", field, value) }
	operation := func(field, value string) string { return fmt.Sprintf("to: [{operation: {%s: [%q]}}]", field, value) }
	cond := func(key, value string) string { return fmt.Sprintf("when: [{key: %q, values: [%q]}]", key, value) }
	not := func(key, value string) string { return fmt.Sprintf("when: [{key: %q, notValues: [%q]}]", key, value) }
	tests := []struct{ rule, want string }{
		{source("principals", ""), "from[0].source.principals[0]: an empty value"},
		{source("notPrincipals", "spiffe://"), "from[0].source.notPrincipals[0]: an empty value"},
		{source("namespaces", ""), "from[0].source.namespaces[0]: an empty value"},
		{source("notNamespaces", ""), "from[0].source.notNamespaces[0]: an empty value"},
		{source("serviceAccounts", "a/*"), `from[0].source.serviceAccounts[0]: "a/*" is not a service account (NAMESPACE/NAME or NAME, without wildcards)`},
		{source("notServiceAccounts", "a/b/c"), `from[0].source.notServiceAccounts[0]: "a/b/c" is not a service account (NAMESPACE/NAME or NAME, without wildcards)`},
		{source("serviceAccounts", "/a"), `from[0].source.serviceAccounts[0]: "/a" is not a service account (NAMESPACE/NAME or NAME, without wildcards)`},
		{source("ipBlocks", "10.0.0.0/33"), `from[0].source.ipBlocks[0]: "10.0.0.0/33" is not an address or a CIDR`},
		{source("notIpBlocks", "host"), `from[0].source.notIpBlocks[0]: "host" is not an address or a CIDR`},
		{source("remoteIpBlocks", "::ffff:10.0.0.0/104"), `from[0].source.remoteIpBlocks[0]: "::ffff:10.0.0.0/104" is not an address or a CIDR`},
		{source("trustDomains", "*.local"), `from[0].source.trustDomains[0]: "*.local": a suffix of the trust domain cannot be matched`},
		{source("notTrustDomains", "a/b"), `from[0].source.notTrustDomains[0]: "a/b" is not a trust domain`},
		{`from: [{source: {principals: ["*"], trustDomains: [td]}}]`, "from[0].source.trustDomains: cannot be combined with principals"},
		{operation("ports", "0"), `to[0].operation.ports[0]: "0" is not a port (1-65535)`},
		{operation("ports", "65536"), `to[0].operation.ports[0]: "65536" is not a port (1-65535)`},
		{operation("notPorts", "65616"), `to[0].operation.notPorts[0]: "65616" is not a port (1-65535)`},
		{operation("ports", "8*"), `to[0].operation.ports[0]: "8*" is not a port (1-65535)`},
		{cond("destination.port", "-1"), `when[0].values[0]: "-1" is not a port (1-65535)`},
		{not("destination.ip", ""), `when[0].notValues[0]: "" is not an address or a CIDR`},
		{cond("request.time", "8:00:00-18:00:00"), `when[0].values[0]: "8:00:00-18:00:00" is not a window HH:MM:SS-HH:MM:SS`},
		{cond("request.time", "08:00:00"), `when[0].values[0]: "08:00:00" is not a window HH:MM:SS-HH:MM:SS`},
		{cond("request.time", "24:00:00-08:00:00"), `when[0].values[0]: "24:00:00-08:00:00" is not a window HH:MM:SS-HH:MM:SS`},
		{not("request.time", "08:00:00-18:60:00"), `when[0].notValues[0]: "08:00:00-18:60:00" is not a window HH:MM:SS-HH:MM:SS`},
		{cond("request.headers[]", "x"), `when[0].key: "request.headers[]" is not a condition that is known`},
		{cond("request.headers[:path]", "x"), `when[0].key: ":path" is not the name of a header`},
		{cond("request.headers[a][b]", "x"), `when[0].key: "request.headers[a][b]" is not a condition that is known`},
		{cond("request.auth.claims", "x"), `when[0].key: "request.auth.claims" is not a condition that is known`},
		{not("request.auth.claims[a]", ""), `when[0].notValues[0]: an empty value`},
		{cond("experimental.envoy.filters.network.mysql_proxy[db.t]", "x"), `when[0].key: "experimental.envoy.filters.network.mysql_proxy[db.t]" is about filters of Envoy, of which there are none here`},
		{operation("paths", "/a/{*}.txt"), `to[0].operation.paths[0]: path template "/a/{*}.txt": segment "{*}.txt": an operator {*} or {**} stands alone, and there are no others`},
		{operation("notPaths", "/{**}/a/{*}"), `to[0].operation.notPaths[0]: path template "/{**}/a/{*}": {**} is not the last operator`},
		{operation("paths", "/*/baz/{*}"), `to[0].operation.paths[0]: path template "/*/baz/{*}": segment "*": an operator {*} or {**} stands alone, and there are no others`},
		{operation("hosts", ""), `to[0].operation.hosts[0]: an empty value`},
		{cond("source.labels[]", "x"), `when[0].key: "source.labels[]" is not a condition that is known`},
		{cond("source.labels[a", "x"), `when[0].key: "source.labels[a" is not a condition that is known`},
		{cond("source.ips", "x"), `when[0].key: "source.ips" is not a condition that is known`},
	}
	for _, tt := range tests {
		for _, action := range []string{"ALLOW", "DENY"} {
			effect := map[string]string{"ALLOW": "never matches", "DENY": "matches always"}[action]
			want := "spec.rules[0]." + tt.want
			r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{
				authorization(t, "action: "+action+"\nrules:\n- "+tt.rule),
			}})
			if diff := cmp.Diff([]string{"unknown (" + want + ")"}, words(r.Policies[0].Rules)); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", action, tt.rule, diff)
			}
			if got := strings.Join(r.Statuses[0].Messages, "\n"); !strings.Contains(got, want+": this alternative "+effect) {
				t.Errorf("%s %s: messages %q", action, tt.rule, got)
			}
		}
	}
}

func TestLabelsThatPoliciesName(t *testing.T) {
	r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{authorization(t, `
rules:
- when: [{key: "source.labels[b]", values: [x]}, {key: "source.labels[a]", notValues: [v]}, {key: "source.labels[b]", values: [z]}]`)}})
	if diff := cmp.Diff([]string{"a", "b"}, r.LabelKeys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": ""}, r.Labels(map[string]string{"a": "1", "c": "2"})); diff != "" {
		t.Errorf("labels of a pod (-want +got):\n%s", diff)
	}
	if got := (&PolicyResult{}).Labels(map[string]string{"a": "1"}); got != nil {
		t.Errorf("labels that nobody names: %v", got)
	}
}

func TestIntersect(t *testing.T) {
	p := netip.MustParsePrefix
	got := intersect([]netip.Prefix{p("10.0.0.0/8"), p("fd00::/8")}, []netip.Prefix{p("10.0.0.0/8"), p("10.1.0.0/16"), p("0.0.0.0/0"), p("192.0.2.0/24")})
	if diff := cmp.Diff("[10.0.0.0/8 10.1.0.0/16 10.0.0.0/8]", fmt.Sprint(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever a condition or a source says, it is translated, or unknown with a message: nothing is dropped in silence.
func FuzzValues(f *testing.F) {
	for _, key := range []string{"source.ip", "remote.ip", "source.namespace", "source.principal", "source.serviceAccount", "source.trustDomain", "destination.ip", "destination.port", "source.labels[a]", "request.time", "request.headers[a]", "x"} {
		f.Add(key, "10.0.0.0/8")
	}
	f.Add("request.time", "00:00:00-24:00:00")
	f.Add("source.principal", "spiffe://*")
	f.Fuzz(func(t *testing.T, key, value string) {
		spec := securityv1beta1.AuthorizationPolicy{
			Action: securityv1beta1.AuthorizationPolicy_DENY,
			Rules: []*securityv1beta1.Rule{{
				When: []*securityv1beta1.Condition{{Key: key, Values: []string{value}}},
				From: []*securityv1beta1.Rule_From{{Source: &securityv1beta1.Source{ServiceAccounts: []string{value}}}},
				To:   []*securityv1beta1.Rule_To{{Operation: &securityv1beta1.Operation{NotPorts: []string{value}}}},
			}},
		}
		obj := &securityv1.AuthorizationPolicy{}
		spec.DeepCopyInto(&obj.Spec)
		r := Policies(PolicyInput{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{obj}})
		clauses, messages := r.Policies[0].Rules[0].Clauses, strings.Join(r.Statuses[0].Messages, "\n")
		if len(clauses) < 3 {
			t.Errorf("%q %q: a clause is missing: %v; messages %s", key, value, words(r.Policies[0].Rules), messages)
		}
		for _, c := range clauses {
			m := c.Matches[0]
			if matchWords(m) == "never" || m.Unknown != "" && !strings.Contains(messages, m.Unknown) {
				t.Errorf("%q %q: %s; messages %s", key, value, matchWords(m), messages)
			}
		}
	})
}
