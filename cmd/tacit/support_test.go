//go:build !inpod

package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/cmd/tacit/support"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

const planted = "planted-hunter2"

// packed returns the files of an archive, without its folder.
func packed(t *testing.T, file string) (files map[string]string, index support.Index) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the archive: %v, %v", info.Mode(), err)
	}
	in, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		text, readErr := io.ReadAll(r)
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		files[name] = string(text)
		if strings.Contains(string(text), planted) {
			t.Errorf("a secret is in %s: %s", name, text)
		}
	}
	if err := json.Unmarshal([]byte(files["index.json"]), &index); err != nil {
		t.Fatal(err)
	}
	return files, index
}

// answers of a proxy, to all that is asked for an archive.
func supportAnswers(node string) map[string]any {
	return map[string]any{
		"/status":                        admin.Status{Node: node, Sections: map[string]json.RawMessage{"xds": json.RawMessage(`{"token":"` + planted + `"}`)}},
		"/certificates":                  certificates{Node: node, Certificates: []admin.Certificate{{Identity: "spiffe://td/ns/shop/sa/a", Chain: [][]byte{[]byte(planted)}, Roots: [][]byte{[]byte(planted)}}}},
		"/coverage":                      admin.Coverage{Node: node},
		"/connections":                   connections{},
		"/connections?denied=":           connections{},
		"/flows?limit=5000&since=15m0s":  admin.Flows{Node: node},
		"/dump":                          map[string]any{"generation": 7},
		"/debug/pprof/goroutine?debug=1": "goroutines",
	}
}

func metricsServer(t *testing.T) (port int) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "tacit_time_seconds 1\n# Bearer "+planted+"\n")
	}))
	t.Cleanup(server.Close)
	_, text, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	port, err = strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestSupportOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	log, file := filepath.Join(dir, "proxy.log"), filepath.Join(dir, "out.tar.gz")
	if err := os.WriteFile(log, []byte(`{"msg":"started","password":"`+planted+`"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := serve(t, supportAnswers("node-a"))
	where := "http://127.0.0.1:" + strconv.Itoa(metricsServer(t)) + "/metrics"
	code, _, errOut := tacit("support", "--socket", socket, "-f", file, "--log", log, "--metrics", where)
	files, index := packed(t, file)
	if code != 0 || index.Partial || !strings.Contains(errOut, "Packed 11 parts") {
		t.Errorf("exit %d, %s, %+v", code, errOut, index)
	}
	for name, want := range map[string]string{
		"proxy/status.json": `"node": "node-a"`, "proxy/certificates.json": "spiffe://td/ns/shop/sa/a", "proxy/dump.json": "7", "proxy/goroutines.txt": "goroutines",
		"metrics-1.txt": "tacit_time_seconds", "logs/1-proxy.log": "started", "facts.json": `"kernel"`,
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s is %q, want %q", name, files[name], want)
		}
	}
	// What cannot be read does not keep the rest from being packed.
	code, _, errOut = tacit("support", "--socket", socket, "-f", file, "--log", filepath.Join(dir, "none"))
	if _, index := packed(t, file); code != exitPartial || !index.Partial || !strings.Contains(errOut, "MISSING: open") {
		t.Errorf("exit %d, %s, %+v", code, errOut, index)
	}
	none := filepath.Join(dir, "none.tar.gz")
	code, _, errOut = tacit("support", "--socket", filepath.Join(dir, "no.sock"), "-f", none, "--metrics", "http://127.0.0.1:1")
	if _, err := os.Stat(none); code != exitPartial || err != nil || !strings.Contains(errOut, "Packed 1 parts") {
		t.Errorf("no proxy: exit %d, %s, %v", code, errOut, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if code, _, errOut := tacit("support", "--socket", socket, "-f", filepath.Join(dir, "none", "x")); code != exitFailed {
		t.Errorf("no such directory: exit %d, %s", code, errOut)
	}
}

func TestSupportOfACluster(t *testing.T) {
	c := twoNodes(map[string]string{"proxy-a": serve(t, supportAnswers("node-a")), "proxy-b": serve(t, nil)})
	status := core.PodStatus{Phase: core.PodRunning, ContainerStatuses: []core.ContainerStatus{{Name: cluster.Agent, RestartCount: 1}}}
	agent := &core.Pod{ObjectMeta: meta.ObjectMeta{Namespace: "tacit-system", Name: "agent-a", Labels: map[string]string{"app.kubernetes.io/name": cluster.Agent}}, Status: status,
		Spec: core.PodSpec{Containers: []core.Container{{Name: cluster.Agent}}}}
	proxies, err := c.Client.CoreV1().Pods("").List(t.Context(), meta.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	objects := []runtime.Object{agent}
	for i := range proxies.Items {
		objects = append(objects, &proxies.Items[i])
	}
	c.Client = fake.NewClientset(objects...)
	lists := map[schema.GroupVersionResource]string{}
	for _, r := range support.Resources() {
		lists[r] = r.Resource + "List"
	}
	c.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	proxy := c.Run
	c.Run = func(ctx context.Context, pod, container string, command []string) ([]byte, error) {
		if container == cluster.Agent {
			return []byte(`{"kernel":"6.1"}`), nil
		}
		return proxy(ctx, pod, container, command)
	}
	port := metricsServer(t)
	c.Forward = func(ctx context.Context, _ string, _, _ int) (int, <-chan error, error) {
		ended := make(chan error)
		context.AfterFunc(ctx, func() { close(ended) })
		return port, ended, nil
	}
	file := filepath.Join(t.TempDir(), "out.tar.gz")
	f := &supportFlags{client: client{output: outputText, remote: remote{connect: func() (*cluster.Cluster, error) { return c, nil }}}, file: file, maxSize: 64, logLines: 10, since: supportSince}
	cmd := supportCommand()
	cmd.SetContext(t.Context())
	var told strings.Builder
	cmd.SetErr(&told)
	var lack partialError
	if err := f.run(cmd); !errors.As(err, &lack) {
		t.Errorf("one node gives no answer: %v\n%s", err, told.String())
	}
	files, index := packed(t, file)
	if !index.Partial {
		t.Error("not marked as partial")
	}
	for name, want := range map[string]string{
		"nodes/node-a/status.json": "node-a", "pods/agent-a/facts.json": "6.1", "pods/agent-a/metrics.txt": "tacit_time_seconds", "pods/proxy-a/metrics.txt": "tacit_time_seconds",
		"pods/agent-a/tacit-agent.log": "fake logs", "pods/agent-a/tacit-agent.before.log": "fake logs", "cluster/version.json": "gitVersion",
		"cluster/authorizationpolicies.json": `"items"`, "cluster/check.json": "findings", "cluster/events-of-agents.json": "items",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s is %q, want %q", name, files[name], want)
		}
	}
	missing := map[string]string{}
	for _, file := range index.Files {
		if file.Error != "" {
			missing[file.Name] = file.Error
		}
	}
	if !strings.Contains(missing["nodes/node-b/dump.json"], "asked for /dump") || missing["nodes/node-a/dump.json"] != "" {
		t.Errorf("missing are %v", missing)
	}
	if _, there := files["cluster/secrets.json"]; there {
		t.Error("Secrets were read")
	}
}
