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
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"good.yaml":   "",
		"doubt.yaml":  "allows exactly the callers that have not authenticated",
		"never.yaml":  "filters of Envoy",
		"broken.yaml": "broken.yaml:4",
		"none.yaml":   "none.yaml",
	} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), "tacit", []string{"lint", filepath.Join(dir, name)}, &out, &errOut)
		if wantCode := map[bool]int{true: 0, false: exitFound}[want == ""]; code != wantCode || !strings.Contains(out.String(), want) || want == "" && out.Len() > 0 {
			t.Errorf("%s: exit %d, %s%s; want %q", name, code, out.String(), errOut.String(), want)
		}
	}
}
