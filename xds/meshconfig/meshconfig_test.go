package meshconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMeshConfig(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, []byte("PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(text string) (s build.Settings, err error) {
		file := filepath.Join(dir, "mesh.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return s, Read(file, &s, os.ReadFile)
	}
	got, err := read(`
pathNormalization: {normalization: MERGE_SLASHES}
extensionProviders:
- name: grpc
  envoyExtAuthzGrpc: {service: ns/authz.ns.svc.cluster.local, port: 9000, timeout: 0.5s, failOpen: true, statusOnError: "503", includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}
- name: http
  envoyExtAuthzHttp: {service: authz.example, port: 80, pathPrefix: /check, includeRequestHeadersInCheck: [x-a, "x-b*"], headersToUpstreamOnAllow: [x-c], headersToDownstreamOnDeny: [x-d], headersToDownstreamOnAllow: [x-e], includeAdditionalHeadersInCheck: {a: b}}
- name: tracing
  zipkin: {service: z, port: 1}
providerTLS: {http: {serverName: s, caFile: ` + ca + `}}
rateLimitStore: {host: redis, port: 6379, tls: {caFile: ` + ca + `}}
defaultConfig: {gatewayTopology: {numTrustedProxies: 2}}
trustDomainAliases: [old.example, cluster.local]
trustedProxies: [cluster.local/ns/ingress/sa/gateway, "spiffe://other/*"]
`)
	if err != nil {
		t.Fatal(err)
	}
	text := func(values ...string) []model.StringMatch { return matches(values) }
	want := build.Settings{
		TrustDomainAliases: []string{"old.example", "cluster.local"},

		Paths: model.NormalizeMergeSlashes,
		Providers: map[string]*model.Provider{
			"grpc": {Name: "grpc", Host: "authz.ns.svc.cluster.local", Port: 9000, Timeout: 500 * time.Millisecond, FailOpen: true, StatusOnError: 503, IncludeBody: 10, AllowPartial: true, BodyAsBytes: true},
			"http": {
				Name: "http", Protocol: model.ProviderHTTP, Host: "authz.example", Port: 80, Timeout: defaultProviderTimeout, TLS: true, ServerName: "s", Roots: "PEM",
				PathPrefix: "/check", IncludeRequestHeaders: text("x-a", "x-b*"), IncludeAdditionalHeaders: map[string]string{"a": "b"},
				HeadersToUpstreamOnAllow: text("x-c"), HeadersToDownstreamOnDeny: text("x-d"), HeadersToDownstreamOnOK: text("x-e"),
			},
		},
		LimitStore: &model.LimitStore{Host: "redis", Port: 6379, TLS: true, Roots: "PEM"},
		Forwarding: model.Forwarding{Proxies: 2, Callers: text("cluster.local/ns/ingress/sa/gateway", "other/*")},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for text, want := range map[string]string{
		"pathNormalisation: {}":                                    "unknown field",
		"pathNormalization: {normalization: x}":                    `"x" is none of`,
		"trustDomainAliases: [spiffe://old.example]":               "trustDomainAliases[0]",
		"providerTLS: {x: {}}":                                     "no provider of this name",
		"rateLimitStore: {host: x}":                                "host and port",
		"trustedProxies: [a]":                                      "numTrustedProxies is to say",
		"defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}": "trustedProxies is to name",
		"defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}\ntrustedProxies: ['']":                                  "trustedProxies[0]: empty",
		"extensionProviders: [{name: a, envoyExtAuthz: 1}]":                                                               "unknown field",
		"extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: x, port: 65536}}]":                                   "65536 is not a port",
		"extensionProviders: [{name: a, envoyExtAuthzGrpc: {port: 1}}]":                                                   "service is missing",
		"extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: x, port: 1, timeout: 0s}}]":                          "not above 0",
		`extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: x, port: 1, statusOnError: "200"}}]`:                 "no status of an error",
		"extensionProviders: [{name: a, envoyExtAuthzHttp: {service: x, port: 1}}]\nproviderTLS: {a: {caFile: /no/such}}": "no such file",
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if err := Read(filepath.Join(dir, "none"), &build.Settings{}, os.ReadFile); err == nil {
		t.Error("a file that is not there is none")
	}
}
