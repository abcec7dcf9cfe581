package nodeapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// Each method asks what it is named after, and understands the answer.
func TestRequests(t *testing.T) {
	var asked string
	answers := map[string]string{
		"GET /api/v1/pods?fieldSelector=spec.nodeName%3Dhere":               `{"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "web"}}]}`,
		"GET /api/v1/pods?watch=true":                                       `{"type": "ADDED", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"}}}`,
		"GET /api/v1/namespaces/shop/pods/web":                              `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"}}`,
		"PATCH /api/v1/namespaces/shop/pods/web/status":                     `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"}}`,
		"GET /api/v1/namespaces":                                            `{"kind": "NamespaceList", "apiVersion": "v1", "items": [{"metadata": {"name": "web"}}]}`,
		"GET /apis/node.k8s.io/v1/runtimeclasses":                           `{"kind": "RuntimeClassList", "apiVersion": "node.k8s.io/v1", "items": [{"metadata": {"name": "web"}}]}`,
		"GET /api/v1/nodes/web":                                             `{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "web"}}`,
		"POST /api/v1/namespaces/shop/events":                               `{"kind": "Event", "apiVersion": "v1", "metadata": {"name": "web"}}`,
		"POST /api/v1/namespaces/tacit-system/serviceaccounts/plugin/token": `{"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": {"token": "web"}}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.RequestURI()
		if body, ok := answers[asked]; ok {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(body))
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	c, err := New(&rest.Config{Host: server.URL, QPS: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for what, do := range map[string]func() (string, error){
		"list of pods": func() (string, error) {
			list, err := c.Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=here"})
			return first(list.Items, err, func(p corev1.Pod) string { return p.Name })
		},
		"watch of pods": func() (string, error) {
			w, err := c.Pods("").Watch(ctx, metav1.ListOptions{})
			if err != nil {
				return "", err
			}
			defer w.Stop()
			event := <-w.ResultChan()
			return event.Object.(*corev1.Pod).Name, nil
		},
		"pod": func() (string, error) {
			p, err := c.Pods("shop").Get(ctx, "web", metav1.GetOptions{})
			return p.Name, err
		},
		"status of a pod": func() (string, error) {
			p, err := c.Pods("shop").Patch(ctx, "web", types.MergePatchType, []byte("{}"), metav1.PatchOptions{}, "status")
			return p.Name, err
		},
		"namespaces": func() (string, error) {
			list, err := c.Namespaces().List(ctx, metav1.ListOptions{})
			return first(list.Items, err, func(n corev1.Namespace) string { return n.Name })
		},
		"runtime classes": func() (string, error) {
			list, err := c.RuntimeClasses().List(ctx, metav1.ListOptions{})
			return first(list.Items, err, func(c nodev1.RuntimeClass) string { return c.Name })
		},
		"node": func() (string, error) {
			n, err := c.Nodes().Get(ctx, "web", metav1.GetOptions{})
			return n.Name, err
		},
		"event": func() (string, error) {
			e, err := c.Events("shop").Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}, metav1.CreateOptions{})
			return e.Name, err
		},
		"token": func() (string, error) {
			r, err := c.Tokens("tacit-system").CreateToken(ctx, "plugin", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
			return r.Status.Token, err
		},
	} {
		if got, err := do(); got != "web" || err != nil {
			t.Errorf("%s: %q, %v; asked for %s", what, got, err, asked)
		}
	}
}

func first[T any](all []T, err error, name func(T) string) (string, error) {
	if err != nil || len(all) != 1 {
		return "", err
	}
	return name(all[0]), nil
}

// What is asked of the API is cut short when nobody waits for it any more.
func TestContext(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	c, err := New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Pods("").List(ctx, metav1.ListOptions{}); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("got %v", err)
	}
}
