package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

const kubeconfig = `
apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: c, cluster: {server: SERVER}}
- {name: d, cluster: {server: "https://other.example"}}
contexts:
- {name: one, context: {cluster: c, user: u}}
- {name: two, context: {cluster: d, user: u}}
users:
- {name: u, user: {token: secret}}
`

func writeKubeconfig(t *testing.T, server string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(kubeconfig, "SERVER", server)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConnect(t *testing.T) {
	file := writeKubeconfig(t, "https://one.example")
	for context, want := range map[string]string{"": "https://one.example", "two": "https://other.example"} {
		c, err := Flags{Kubeconfig: file, Context: context, Namespace: "ours"}.Connect()
		if err != nil || c.Config.Host != want || c.Namespace != "ours" || !strings.HasPrefix(c.Config.UserAgent, "tacit/") {
			t.Errorf("context %q: %+v, %v", context, c, err)
		}
	}
	if _, err := (Flags{Kubeconfig: file, Context: "three"}).Connect(); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("a context that there is not: %v", err)
	}
	// Nothing says which cluster: that is not localhost.
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "absent"))
	if _, err := (Flags{}).Connect(); !errors.Is(err, ErrNoKubeconfig) {
		t.Errorf("without a kubeconfig: %v", err)
	}
}

// Of the pods of a node the newest comes first, and those that end are left
// out.
func TestPods(t *testing.T) {
	pod := func(name, node string, age time.Duration, phase core.PodPhase) *core.Pod {
		return &core.Pod{
			ObjectMeta: meta.ObjectMeta{Namespace: "ours", Name: name, Labels: map[string]string{nameLabel: Proxy},
				CreationTimestamp: meta.NewTime(time.Unix(1e9, 0).Add(-age))},
			Spec: core.PodSpec{NodeName: node}, Status: core.PodStatus{Phase: phase},
		}
	}
	ending := pod("ending", "a", 0, core.PodRunning)
	ending.DeletionTimestamp, ending.Finalizers = &meta.Time{Time: time.Now()}, []string{"x"}
	c := &Cluster{Namespace: "ours", Client: fake.NewClientset(ending, pod("old", "b", time.Hour, core.PodRunning), pod("new", "b", time.Minute, core.PodRunning),
		pod("only", "a", time.Hour, core.PodRunning), pod("waits", "c", 0, core.PodPending))}
	names := func(pods []core.Pod, err error) (all []string) {
		if err != nil {
			t.Error(err)
		}
		for _, p := range pods {
			all = append(all, p.Name)
		}
		return all
	}
	if got := names(c.Pods(t.Context(), Proxy)); !slices.Equal(got, []string{"only", "new", "old"}) {
		t.Errorf("pods are %v", got)
	}
	if got := names(c.Proxies(t.Context())); !slices.Equal(got, []string{"only", "new"}) {
		t.Errorf("proxies are %v", got)
	}
}

// execServer speaks the API server's side of exec over a WebSocket, version 5:
// each message begins with its channel, 1 and 2 for output, 3 for the end.
func execServer(t *testing.T, stdout, stderr string, end *meta.Status, asked *http.Request) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = *r.Clone(context.Background())
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v5.channel.k8s.io"}})
		if err != nil {
			t.Error(err)
			return
		}
		status, err := json.Marshal(end)
		if err != nil {
			t.Error(err)
		}
		for channel, text := range map[byte]string{1: stdout, 2: stderr} {
			if err := conn.Write(r.Context(), websocket.MessageBinary, append([]byte{channel}, text...)); err != nil {
				t.Error(err)
			}
		}
		if err := conn.Write(r.Context(), websocket.MessageBinary, append([]byte{3}, status...)); err != nil {
			t.Error(err)
		}
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestRun(t *testing.T) {
	failed := &meta.Status{Status: meta.StatusFailure, Reason: "NonZeroExitCode",
		Details: &meta.StatusDetails{Causes: []meta.StatusCause{{Type: "ExitCode", Message: "3"}}}}
	for name, test := range map[string]struct {
		end  *meta.Status
		code int
	}{"well": {&meta.Status{Status: meta.StatusSuccess}, 0}, "not well": {failed, 3}} {
		var asked http.Request
		c, err := Flags{Kubeconfig: writeKubeconfig(t, execServer(t, "said", "complained\n", test.end, &asked)), Namespace: "ours"}.Connect()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Run(t.Context(), "pod", Proxy, []string{"tacit", "ask", "/status"})
		var exit *ExitError
		if string(out) != "said" || errors.As(err, &exit) != (test.code != 0) || exit != nil && (exit.Code != test.code || exit.Stderr != "complained") {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		if path := asked.URL.Path; path != "/api/v1/namespaces/ours/pods/pod/exec" {
			t.Errorf("%s: asked %s", name, path)
		}
		if q := asked.URL.Query(); !slices.Equal(q["command"], []string{"tacit", "ask", "/status"}) || q.Get("container") != Proxy || q.Has("stdin") {
			t.Errorf("%s: asked %v", name, q)
		}
	}
}

// What a pod says has a bound, however it is copied.
func TestOutputIsBounded(t *testing.T) {
	b := &bounded{limit: 10}
	if _, err := io.Copy(b, strings.NewReader(strings.Repeat("x", 100))); err == nil || b.text.Len() > 10 {
		t.Errorf("%d bytes, %v", b.text.Len(), err)
	}
}
