package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/test/servers"
)

// istioSystem is where Istio is, and Tacit beside it.
const istioSystem = "istio-system"

// findIstio builds what is not there yet.
func findIstio(ctx context.Context) error {
	programs, err := servers.Build(ctx, "istiod", os.Stderr)
	if err != nil {
		return err
	}
	source, err := servers.Source(ctx, "istiod", "istio.io/istio")
	istioPrograms, istioCharts = programs, filepath.Join(source, "manifests/charts")
	return err
}

// installIstio installs Istio as for ambient mode, by its own charts and with its
// own programs, until the end of the test. ztunnel alone has no program: its pods
// do not get to run.
func (e environment) installIstio() {
	e.t.Helper()
	pilot, cni := e.istioImages()
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	e.must(e.Node(nodes[0]).load(e.ctx, pilot), e.publish(e.ctx, cni))
	e.newNamespace(istioSystem, nil)
	little := map[string]any{"requests": map[string]any{"cpu": "10m", "memory": "64Mi"}}
	for _, chart := range []struct {
		name, path string
		values     map[string]any
	}{
		{"istio-base", "base", nil},
		{"istiod", "istio-control/istio-discovery", map[string]any{
			"image": pilot.ref.Name(), "autoscaleEnabled": false, "resources": little, "nodeSelector": map[string]any{"kubernetes.io/hostname": nodes[0]},
		}},
		{"istio-cni", "istio-cni", map[string]any{"image": cni.ref.Name(), "resources": little}},
		{"ztunnel", "ztunnel", map[string]any{"imagePullPolicy": "Never", "resources": little}},
	} {
		loaded, err := loader.LoadDir(filepath.Join(istioCharts, chart.path))
		e.must(err)
		values := map[string]any{"profile": "ambient"}
		for name, value := range chart.values {
			values[name] = value
		}
		text, err := deploy.RenderChart(loaded, chart.name, istioSystem, values)
		e.must(err)
		e.atEnd(func(e environment) error { return e.deleteAll(text) })
		e.must(e.Apply(e.ctx, text))
	}
	e.must(e.AwaitDeployment(e.ctx, istioSystem, "istiod"), e.AwaitDaemonSet(e.ctx, istioSystem, "istio-cni-node"))
}

// istioImages are those of istiod, and of the CNI agent with its plugin.
func (e environment) istioImages() (pilot, cni image) {
	e.t.Helper()
	userland, remove, err := copyUserland(e.ctx)
	e.must(err)
	defer remove()
	program := func(name string) string { return filepath.Join(istioPrograms, name) }
	pilot, err = e.newImage("pilot", "", v1.Config{User: "1337:1337", Entrypoint: []string{"/pilot-discovery"}}, []file{{program("istiod"), "/pilot-discovery"}})
	e.must(err)
	cni, err = e.newImage("install-cni", "", v1.Config{Env: []string{"PATH=/usr/local/bin:/usr/sbin"}}, []file{
		{userland, "/"}, {"/etc/nsswitch.conf", "/etc/nsswitch.conf"}, {program("install-cni"), "/usr/local/bin/install-cni"}, {program("istio-cni"), "/opt/cni/bin/istio-cni"},
	})
	e.must(err)
	return pilot, cni
}

// deleteAll deletes the objects of a YAML text, the last one first, and tries
// all.
func (e environment) deleteAll(text string) error {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096)
	var all []unstructured.Unstructured
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if len(object.Object) > 0 {
			all = append(all, object)
		}
	}
	var errs []error
	for _, object := range slices.Backward(all) {
		errs = append(errs, e.Delete(e.ctx, object.GetAPIVersion(), object.GetKind(), object.GetNamespace(), object.GetName()))
	}
	return errors.Join(errs...)
}

// ztunnelPatch is what is done to ztunnel's DaemonSet, as users are told.
var ztunnelPatch = regexp.MustCompile(`(?s)kubectl patch daemonset ztunnel -n istio-system --type merge -p '(.*?)'`)

// deployInPlace installs Tacit in ztunnel's place by the words of
// deploy/istio/README.md, until the end of the test.
func (e environment) deployInPlace() {
	e.t.Helper()
	told, err := os.ReadFile(filepath.Join(repository, "deploy/istio/README.md"))
	e.must(err)
	patch := ztunnelPatch.FindSubmatch(told)
	if patch == nil {
		e.t.Fatal("deploy/istio/README.md does not say how to keep ztunnel off")
	}
	e.must(e.Patch(e.ctx, "apps/v1", "DaemonSet", istioSystem, "ztunnel", string(patch[1])))
	text, err := os.ReadFile(filepath.Join(repository, "deploy/istio/tacit.yaml"))
	e.must(err)
	manifest := string(text)
	for _, name := range []string{"tacit-agent", "tacit-proxy"} {
		here := fmt.Sprintf("image: %s/%s:%s\n", e.Registry(), name, tag)
		if manifest = strings.Replace(manifest, "image: "+name+":latest\n", here, 1); !strings.Contains(manifest, here) {
			e.t.Fatalf("deploy/istio/tacit.yaml has no image %s to replace", name)
		}
	}
	e.atEnd(func(e environment) error { return e.deleteAll(manifest) })
	e.must(e.Apply(e.ctx, manifest))
}
