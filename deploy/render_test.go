package deploy

import (
	"bufio"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

type values = map[string]any

func render(t *testing.T, v values) string {
	t.Helper()
	text, err := Render(Namespace, v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// documents are the objects of a stream of YAML.
func documents(t *testing.T, text string) []string {
	t.Helper()
	var all []string
	for r := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if o := (map[string]any{}); yaml.Unmarshal(doc, &o) != nil || len(o) > 0 {
			all = append(all, string(doc))
		}
	}
}

// decode reads objects as the API server would, where it is strict: unknown
// and repeated fields are errors. Kinds of platforms and of the Prometheus
// operator stay as they are.
func decode(t *testing.T, text string) []runtime.Object {
	t.Helper()
	kinds := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensions.AddToScheme} {
		if err := add(kinds); err != nil {
			t.Fatal(err)
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, kinds, kinds, json.SerializerOptions{Yaml: true, Strict: true})
	var all []runtime.Object
	for _, doc := range documents(t, text) {
		if strings.Contains(doc, "security.openshift.io") || strings.Contains(doc, "apiVersion: monitoring.coreos.com") {
			o := &unstructured.Unstructured{}
			if err := yaml.UnmarshalStrict([]byte(doc), &o.Object); err != nil {
				t.Errorf("%v\n%s", err, doc)
			}
			all = append(all, o)
			continue
		}
		o, _, err := strict.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Errorf("%v\n%s", err, doc)
			continue
		}
		all = append(all, o)
	}
	return all
}

// find is the object of a type and name.
func find[T any](t *testing.T, objects []runtime.Object, name string) T {
	t.Helper()
	for _, o := range objects {
		named, ok := o.(interface{ GetName() string })
		if match, is := o.(T); ok && is && named.GetName() == name {
			return match
		}
	}
	var none T
	t.Fatalf("there is no %T %s", none, name)
	return none
}

// every value at other than its default, for the branches of the templates.
func everything() values {
	return values{
		"image":       values{"registry": "registry.example.com/mesh", "tag": "v9", "pullPolicy": "Always", "pullSecrets": []any{"pull"}},
		"trustDomain": "example.org",
		"skips":       values{"mode": "listed", "ports": "5432,9000-9100"},
		"mesh":        values{"config": values{"pathNormalization": values{"normalization": "BASE"}}},
		"spire":       values{"adminSocket": "/run/spire/admin/api.sock"},
		"tacitd": values{"replicas": 3, "minAvailable": "50%", "writeStatus": false, "priorityClassName": "", "extraArgs": []any{"--more"},
			"tolerations": []any{}},
		"proxy": values{"drainSeconds": 60, "maxSurge": "10%", "directLocal": false, "connectionsPerPod": 7, "onDemand": true, "priorityClassName": "",
			"seLinuxOptions": values{"type": "spc_t"}, "extraArgs": []any{"--more"}},
		"agent": values{"maxUnavailable": "20%", "iptables": "nft", "priorityClassName": "", "seLinuxOptions": values{"type": "spc_t"},
			"extraArgs": []any{"--more"}},
		"cni":          values{"enabled": false},
		"startupTaint": values{"enabled": true}, "networkPolicy": values{"enabled": true},
		"metrics": values{"annotations": false, "podMonitors": true, "rules": true, "operatorLabels": values{"release": "prometheus"},
			"dashboards": true, "dashboardLabels": values{"grafana": "yes"}},
		"crl":               values{"configMap": "istio-ca-crl", "keys": []any{"ca-crl.pem", "more.crl"}, "files": []any{"/etc/pki/crl/ours.pem", "/var/lib/pki/crl/theirs.der"}},
		"otlp":              values{"endpoint": "https://otel-collector.observability.svc:4317", "rootConfigMap": "otlp-root", "headersSecret": "otlp-headers", "audit": true},
		"tracing":           values{"enabled": true, "sampling": 0.5},
		"admissionPolicies": values{"enabled": false},
		"crds":              values{"install": false}, "resourceQuota": values{"enabled": true}, "openshift": values{"enabled": true},
	}
}

// variants are the values that the chart is tried with: all presets among them.
func variants(t *testing.T) map[string]values {
	t.Helper()
	all := map[string]values{"default": {}, "everything": everything()}
	for _, name := range Presets() {
		preset, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		all["preset "+name] = preset
	}
	return all
}

// The API server would take every object, whatever the values; each is in our
// namespace or in none, and says what it is.
func TestObjectsAreValid(t *testing.T) {
	for name, v := range variants(t) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, doc := range documents(t, render(t, v)) {
				var o unstructured.Unstructured
				if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
					t.Fatal(err)
				}
				key := o.GetKind() + "/" + o.GetName()
				if seen[key] {
					t.Errorf("%s is there twice", key)
				}
				seen[key] = true
				if n := o.GetNamespace(); n != "" && n != Namespace {
					t.Errorf("%s is in namespace %s", key, n)
				}
				if o.GetLabels()["app.kubernetes.io/part-of"] != "tacit" {
					t.Errorf("%s does not say whose it is: %v", key, o.GetLabels())
				}
			}
			if len(decode(t, render(t, v))) < 10 {
				t.Error("hardly any objects")
			}
		})
	}
}

func TestPresetsNameWhatThereIs(t *testing.T) {
	if diff := cmp.Diff([]string{"aks", "eks", "gke", "k3s", "openshift"}, Presets()); diff != "" {
		t.Error(diff)
	}
	if _, err := Preset("nomad"); err == nil || !strings.Contains(err.Error(), "aks, eks, gke") {
		t.Errorf("an unknown preset: %v", err)
	}
}

// The plain manifests are what the chart gives now.
func TestPlainManifests(t *testing.T) {
	const objects = `# The objects of the chart with its default values, for kubectl apply. Made by
# go test ./deploy -update; the kinds of policies are in crds.yaml.
`
	const kinds = `# The kinds of policies, for clusters without Istio. Install them with kubectl
# create, which leaves alone what is there. Made by go test ./deploy -update.
`
	without, with := render(t, values{"crds": values{"install": false}}), render(t, nil)
	crds := kinds
	for _, doc := range documents(t, with) {
		if strings.Contains(doc, "kind: CustomResourceDefinition") {
			crds += "---\n" + strings.TrimPrefix(doc, "---\n")
		}
	}
	golden(t, "tacit.yaml", objects+NamespaceManifest(Namespace)+without)
	golden(t, "crds.yaml", crds)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("deploy/%s is not what the chart gives; run go test ./deploy -update:\n%s", filepath.Base(path), diff)
	}
}
