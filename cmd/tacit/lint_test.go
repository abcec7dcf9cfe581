package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLint(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"good.yaml":   "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {selector: {matchLabels: {app: x}}}\n",
		"doubt.yaml":  "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {rules: [{from: [{source: {notPrincipals: ['*']}}]}]}\n",
		"never.yaml":  "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {rules: [{when: [{key: experimental.envoy.filters.a, values: [b]}]}]}\n",
		"broken.yaml": "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {rule: []}\n",
		"custom.yaml": "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {action: CUSTOM, provider: {name: gate}, rules: [{}]}\n" +
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: gate, namespace: a}\nstatus: {podIPs: [{ip: 198.18.0.9}]}\n",
		"mesh.yaml": "extensionProviders: [{name: gate, envoyExtAuthzHttp: {service: 198.18.0.9, port: 9000}}]\nproviderTLS: {gate: {caFile: /not/here}}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for args, want := range map[string]string{
		"good.yaml":                           "",
		"custom.yaml":                         "the configuration of the mesh has no provider",
		"custom.yaml --mesh-config mesh.yaml": `where provider "gate" itself is`,
		"doubt.yaml":                          "allows exactly the callers that have not authenticated",
		"never.yaml":                          "filters of Envoy",
		"broken.yaml":                         "broken.yaml:4",
		"none.yaml":                           "none.yaml",
	} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), "tacit", append([]string{"lint"}, strings.Fields(args)...), &out, &errOut)
		if wantCode := map[bool]int{true: 0, false: exitFound}[want == ""]; code != wantCode || !strings.Contains(out.String(), want) || want == "" && out.Len() > 0 {
			t.Errorf("%s: exit %d, %s%s; want %q", args, code, out.String(), errOut.String(), want)
		}
	}
}
