package install

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connect(objects ...runtime.Object) *cluster.Cluster {
	return &cluster.Cluster{Namespace: deploy.Namespace, Client: fake.NewClientset(objects...)}
}

// Later values win over earlier ones: preset, files in their order, --set.
func TestValues(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"one.yaml": "cni: {binDir: /one}\nproxy: {drainSeconds: 1}", "two.yaml": "proxy: {drainSeconds: 2, maxSurge: 3}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Preset: "k3s", Files: []string{filepath.Join(dir, "one.yaml"), filepath.Join(dir, "two.yaml")}, Set: []string{"proxy.maxSurge=4", "image.tag=v9"}}
	got, err := o.Values()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"cni":{"binDir":"/one","confDir":"/var/lib/rancher/k3s/agent/etc/cni/net.d"},"image":{"tag":"v9"},"proxy":{"drainSeconds":2,"maxSurge":4}}`
	if string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	for _, o := range []Options{{Preset: "none"}, {Files: []string{"/nowhere"}}, {Set: []string{"no value"}}} {
		if _, err := o.Values(); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// Over what is there already an installation is refused or not, by its state.
func TestRefusal(t *testing.T) {
	for status, want := range map[common.Status]string{
		common.StatusDeployed: "tacit upgrade", common.StatusPendingInstall: "not finished", common.StatusPendingUpgrade: "not finished",
		common.StatusFailed: "", common.StatusUninstalled: "",
	} {
		r := &release.Release{Info: &release.Info{Status: status}, Namespace: deploy.Namespace, Chart: &chartv2.Chart{Metadata: &chartv2.Metadata{AppVersion: "v1"}}}
		if err := refusal(r); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", status, err, want)
		}
	}
}

func TestNamespace(t *testing.T) {
	namespace := func(labels map[string]string) *core.Namespace {
		return &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: deploy.Namespace, Labels: labels}}
	}
	gone := namespace(nil)
	gone.DeletionTimestamp = &meta.Time{Time: time.Now()}
	gone.Finalizers = []string{"kubernetes"}
	for name, test := range map[string]struct {
		there *core.Namespace
		err   string
	}{
		"absent":     {},
		"ours":       {there: namespace(map[string]string{deploy.SecurityLabel: deploy.SecurityLevel})},
		"restricted": {there: namespace(map[string]string{deploy.SecurityLabel: "restricted"}), err: "kubectl label --overwrite namespace tacit-system"},
		"unlabelled": {there: namespace(nil), err: "kubectl label --overwrite"},
		"going":      {there: gone, err: "is being deleted"},
	} {
		c := connect()
		if test.there != nil {
			c = connect(test.there)
		}
		err := ensureNamespace(t.Context(), c)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %v, want %q", name, err, test.err)
		}
		if err != nil {
			continue
		}
		now, err := c.Client.CoreV1().Namespaces().Get(t.Context(), deploy.Namespace, meta.GetOptions{})
		if err != nil || now.Labels[deploy.SecurityLabel] != deploy.SecurityLevel {
			t.Errorf("%s: %+v, %v", name, now, err)
		}
	}
}

// In its first half an upgrade changes everything but tacitd.
func TestUpgradeKeepsControl(t *testing.T) {
	render := func(tag string) string {
		text, err := deploy.Render(deploy.Namespace, map[string]any{"image": map[string]any{"tag": tag}, "tacitd": map[string]any{"writeStatus": tag == "old"}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	out, err := keepControl(render("old")).Run(bytes.NewBufferString(render("new")))
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		if _, image, ok := strings.Cut(line, "image: "); ok {
			images[strings.TrimSpace(image)] = true
		}
	}
	if want := map[string]bool{"tacitd:old": true, "tacit-agent:new": true, "tacit-proxy:new": true}; cmp.Diff(want, images) != "" {
		t.Errorf("images are %v, want %v", images, want)
	}
	// Nor does the old one lose what it may do.
	if !strings.Contains(out.String(), "peerauthentications/status") {
		t.Error("tacitd has lost permissions that it had")
	}
	var documents int
	for doc := range strings.SplitSeq(out.String(), "---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Errorf("%v\n%s", err, doc)
		} else if len(o) > 0 {
			documents++
		}
	}
	if want := strings.Count(render("new"), "\nkind: "); documents != want {
		t.Errorf("%d objects, want %d", documents, want)
	}
}

func proxyPod(name, node string) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: deploy.Namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": cluster.Proxy}},
		Spec:       core.PodSpec{NodeName: node}, Status: core.PodStatus{Phase: core.PodRunning},
	}
}

// A connection between two nodes is one, though both proxies list it.
func TestLiveConnections(t *testing.T) {
	c := connect(proxyPod("a", "node-a"), proxyPod("b", "node-b"))
	list := map[string]string{"a": `{"connections":[{"id":"one"},{"id":"two"}]}`, "b": `{"connections":[{"id":"two"},{"id":"three"}]}`}
	c.Run = func(_ context.Context, pod, container string, command []string) ([]byte, error) {
		if container != cluster.Proxy || strings.Join(command, " ") != "tacit connections -o json" {
			t.Errorf("ran %v in %s", command, container)
		}
		return []byte(list[pod]), nil
	}
	live, err := liveConnections(t.Context(), c)
	if err != nil || len(live) != 3 {
		t.Errorf("%v, %v", live, err)
	}
	list["b"] = "nothing"
	if _, err := liveConnections(t.Context(), c); err == nil || !strings.Contains(err.Error(), "node-b") {
		t.Errorf("an answer that is none: %v", err)
	}
	var _ admin.Connection // whose JSON this is
}

// isGone fails unless a look-up has found nothing.
func isGone(t *testing.T, what string, err error) {
	t.Helper()
	if !apierrors.IsNotFound(err) {
		t.Error(fmt.Errorf("%s is still there: %w", what, err))
	}
}
