package deploy

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// What is no value, or not of its form, is an error and not ignored.
func TestSchemaRefuses(t *testing.T) {
	for name, v := range map[string]values{
		"unknown":             {"proxies": values{}},
		"unknown below":       {"proxy": values{"drain": "1h"}},
		"no number":           {"tacitd": values{"replicas": "two"}},
		"too few":             {"tacitd": values{"replicas": 0}},
		"no surge":            {"proxy": values{"maxSurge": 0}},
		"list without mode":   {"skips": values{"ports": "5432"}},
		"mode without list":   {"skips": values{"mode": "listed"}},
		"no ports":            {"skips": values{"mode": "listed", "ports": "pg"}},
		"directory":           {"cni": values{"binDir": "opt/cni/bin"}},
		"list in no place":    {"crl": values{"files": []any{"ours.pem"}}},
		"list among others":   {"crl": values{"files": []any{"/etc/ssl/ours.pem"}}},
		"list in a detour":    {"crl": values{"files": []any{"/etc/pki/../ours.pem"}}},
		"no list":             {"crl": values{"configMap": "ours", "keys": []any{}}},
		"backend":             {"agent": values{"iptables": "ebpf"}},
		"no duration":         {"tacitd": values{"maxCertificateTTL": "1 day"}},
		"no flag":             {"proxy": values{"extraArgs": []any{"rm"}}},
		"trust domain":        {"trustDomain": "spiffe://x"},
		"audit to nobody":     {"otlp": values{"audit": true}},
		"known by nothing":    {"otlp": values{"endpoint": "https://a:4317"}},
		"roots in clear":      {"otlp": values{"endpoint": "http://a:4317", "rootConfigMap": "roots"}},
		"headers in clear":    {"otlp": values{"endpoint": "http://a:4317", "headersSecret": "headers"}},
		"spans to nobody":     {"tracing": values{"enabled": true}},
		"registry with slash": {"image": values{"registry": "registry.example.com/"}},
	} {
		if _, err := Render(Namespace, v); err == nil {
			t.Errorf("%s: %v was taken", name, v)
		}
	}
}

// Every value has a comment right above it, and the schema knows just those.
func TestValuesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("chart/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	section, previous := "", ""
	for i, line := range strings.Split(string(text), "\n") {
		trimmed := strings.TrimLeft(line, " ")
		indent := len(line) - len(trimmed)
		key, rest, isKey := strings.Cut(trimmed, ":")
		switch {
		case !isKey || strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, "-"):
		case indent == 0:
			section = key
			if rest != "" && !strings.HasPrefix(previous, "#") {
				t.Errorf("values.yaml:%d: %s has no comment", i+1, key)
			}
		case indent == 2 && !strings.HasPrefix(strings.TrimSpace(previous), "#"):
			t.Errorf("values.yaml:%d: %s.%s has no comment", i+1, section, key)
		}
		previous = line
	}

	var defaults map[string]any
	if err := yaml.Unmarshal(text, &defaults); err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]struct {
			Properties map[string]any
			Ref        string `json:"$ref"`
		}
	}
	text, err = os.ReadFile("chart/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global") // Helm's own
	if got, want := slices.Sorted(maps.Keys(schema.Properties)), slices.Sorted(maps.Keys(defaults)); !slices.Equal(got, want) {
		t.Errorf("the schema has %v, values.yaml %v", got, want)
	}
	for name, property := range schema.Properties {
		below, isSection := defaults[name].(map[string]any)
		if !isSection || property.Ref != "" {
			continue
		}
		if got, want := slices.Sorted(maps.Keys(property.Properties)), slices.Sorted(maps.Keys(below)); !slices.Equal(got, want) {
			t.Errorf("of %s the schema has %v, values.yaml %v", name, got, want)
		}
	}
}
