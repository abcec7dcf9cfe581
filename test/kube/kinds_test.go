package kube

import (
	"os"
	"path/filepath"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// broughtKind is one of the kinds of policies that somebody else may have brought.
const broughtKind = "requestauthentications.security.istio.io"

// bringKind makes a kind of policies as if Istio had, with a label of its own.
// The function that it returns checks that the kind is as it was made.
func (e environment) bringKind() (check func()) {
	e.t.Helper()
	if !e.Ours() {
		return func() {}
	}
	text, err := os.ReadFile(filepath.Join(repository, "deploy/chart/kinds/requestauthentications.yaml"))
	e.must(err)
	var object unstructured.Unstructured
	e.must(yaml.Unmarshal(text, &object.Object))
	object.SetLabels(map[string]string{"example.com/brought-by": "another"})
	kinds := e.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	made, err := kinds.Create(e.ctx, &object, metav1.CreateOptions{})
	e.must(err)
	e.atEnd(func(e environment) error { return kinds.Delete(e.ctx, broughtKind, metav1.DeleteOptions{}) })
	return func() {
		e.t.Helper()
		now, err := kinds.Get(e.t.Context(), broughtKind, metav1.GetOptions{})
		e.must(err)
		if diff := cmp.Diff(owned(made), owned(now)); diff != "" {
			e.t.Errorf("%s is not as it was before the installation (- before, + after):\n%s", broughtKind, diff)
		}
	}
}

// owned is what of an object is its maker's.
func owned(object *unstructured.Unstructured) map[string]any {
	return map[string]any{
		"uid": object.GetUID(), "labels": object.GetLabels(), "annotations": object.GetAnnotations(), "spec": object.Object["spec"],
	}
}
