package deploy

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/test/servers"
)

// Both may suspend the mesh, carol may but write objects.
const people = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: bypass}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tacit-bypass}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: writer}
rules: [{apiGroups: [policy.tacit.mesh], resources: [bypasses], verbs: [get, create, update, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: writer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: writer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: carol}]
`

// Who may write a bypass cannot have it be another's: a real API server judges
// by the chart's policy of admission.
func TestBypassNamesItsAuthor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	k := servers.StartKubernetes(t, "10.96.0.0/16")
	installBypass(ctx, t, k.Config)
	as := func(user string) dynamic.ResourceInterface {
		c := rest.CopyConfig(k.Config)
		c.Impersonate.UserName = user
		return bypasses(t, c)
	}
	change := func(user, name string, spec values) error {
		patch, err := json.Marshal(values{"spec": spec})
		if err != nil {
			return err
		}
		_, err = as(user).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	create := func(user, name string, spec values) error {
		full := values{"until": "2030-01-01T00:00:00Z", "reason": "a drill", "since": "2029-01-01T00:00:00Z", "pod": "backend"}
		maps.Copy(full, spec)
		b := &unstructured.Unstructured{Object: values{
			"apiVersion": "policy.tacit.mesh/v1alpha1", "kind": "Bypass", "metadata": values{"name": name}, "spec": full,
		}}
		_, err := as(user).Create(ctx, b, metav1.CreateOptions{})
		return err
	}
	const verb, author, ends, ender = "takes the verb bypass", "spec.by is the user", "all that changes", "spec.endedBy is the user"
	for ctx.Err() == nil { // until the policy is in force
		if err := create("carol", "early", values{"by": "carol"}); err != nil && strings.Contains(err.Error(), verb) {
			break
		}
		_ = bypasses(t, k.Config).Delete(ctx, "early", metav1.DeleteOptions{})
	}
	for _, step := range []struct {
		what string
		do   func() error
		want string // in the error; empty: it succeeds
	}{
		{"without the verb", func() error { return create("carol", "c", values{"by": "carol"}) }, verb},
		{"by another", func() error { return create("alice", "a", values{"by": "bob"}) }, author},
		{"by nobody", func() error { return create("alice", "a", nil) }, author},
		{"ended by another from the start", func() error { return create("alice", "a", values{"by": "alice", "endedBy": "bob"}) }, ender},
		{"by the one who makes it", func() error { return create("alice", "a", values{"by": "alice"}) }, ""},
		{"longer", func() error { return change("bob", "a", values{"until": "2030-01-01T00:00:01Z"}) }, ends},
		{"longer by its author", func() error { return change("alice", "a", values{"until": "2031-01-01T00:00:00Z"}) }, ends},
		{"for all pods", func() error { return change("bob", "a", values{"pod": nil}) }, ends},
		{"without mutual TLS", func() error { return change("bob", "a", values{"policyOnly": true}) }, ends},
		{"for another reason", func() error { return change("bob", "a", values{"reason": "mine"}) }, ends},
		{"by another now", func() error { return change("bob", "a", values{"by": "bob"}) }, ends},
		{"since later", func() error { return change("bob", "a", values{"since": "2029-06-01T00:00:00Z"}) }, ends},
		{"ended in another's name", func() error { return change("bob", "a", values{"until": "2029-02-01T00:00:00Z", "endedBy": "alice"}) }, ender},
		{"shorter", func() error { return change("bob", "a", values{"until": "2029-03-01T00:00:00Z"}) }, ""},
		{"ended", func() error { return change("bob", "a", values{"until": "2029-02-01T00:00:00Z", "endedBy": "bob"}) }, ""},
		{"ended by nobody after all", func() error { return change("alice", "a", values{"endedBy": nil}) }, ender},
		{"ended without the verb", func() error { return change("carol", "a", values{"until": "2029-01-01T00:00:00Z"}) }, verb},
	} {
		err := step.do()
		if step.want == "" && err != nil || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
			t.Errorf("%s: %v, want %q", step.what, err, step.want)
		}
	}
}

// bypasses are those of the namespace default.
func bypasses(t *testing.T, c *rest.Config) dynamic.ResourceInterface {
	t.Helper()
	client, err := dynamic.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return client.Resource(schema.GroupVersionResource{Group: "policy.tacit.mesh", Version: "v1alpha1", Resource: "bypasses"}).Namespace("default")
}

// installBypass brings the kind and all that the chart has about it, and people.
func installBypass(ctx context.Context, t *testing.T, c *rest.Config) {
	t.Helper()
	client, err := dynamic.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	about := []string{"bypasses.policy.tacit.mesh", "tacit-bypass", "bypass", "writer"}
	for _, document := range documents(t, render(t, nil)+"\n---\n"+people) {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(about, o.GetName()) {
			continue
		}
		resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		if _, err := client.Resource(resource).Create(ctx, o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
