package records

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	authv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// Cluster has the records as objects. Whoever may create them may do what they
// stand for.
type Cluster[T any] struct {
	*cluster.Cluster
	Kind Kind[T]
	// In is the namespace whose records are listed; empty: all.
	In string
}

func (c Cluster[T]) objects(namespace string) dynamic.ResourceInterface {
	version, _ := schema.ParseGroupVersion(c.Kind.APIVersion) // a constant
	return c.Dynamic.Resource(version.WithResource(c.Kind.Resource)).Namespace(namespace)
}

// List implements [Store].
func (c Cluster[T]) List(ctx context.Context) ([]*T, error) {
	list, err := c.objects(c.In).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, c.advise("list", err)
	}
	var all []*T
	for _, item := range list.Items {
		r := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, r); err != nil {
			return nil, fmt.Errorf("%s %s/%s: %w", c.Kind.Kind, item.GetNamespace(), item.GetName(), err)
		}
		all = append(all, r)
	}
	return all, nil
}

// Create implements [Store].
func (c Cluster[T]) Create(ctx context.Context, r *T) error {
	*c.Kind.Type(r) = metav1.TypeMeta{APIVersion: c.Kind.APIVersion, Kind: c.Kind.Kind}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(r)
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	_, err = c.objects(c.Kind.Object(r).GetNamespace()).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
	return c.advise("create", err)
}

// Update implements [Store].
func (c Cluster[T]) Update(ctx context.Context, r *T) error {
	patch, err := json.Marshal(map[string]any{"spec": c.Kind.Spec(r)})
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	_, err = c.objects(c.Kind.Object(r).GetNamespace()).Patch(ctx, c.Kind.Object(r).GetName(), types.MergePatchType, patch, metav1.PatchOptions{})
	return c.advise("patch", err)
}

// Who implements [Store]: the user as the API server knows it.
func (c Cluster[T]) Who(ctx context.Context) (string, error) {
	review, err := c.Client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("who you are: %w", err)
	}
	return review.Status.UserInfo.Username, nil
}

// advise says what to do about an answer of the API.
func (c Cluster[T]) advise(verb string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the cluster does not know %s: bring it this version with tacit upgrade: %w", c.Kind.Kind, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("you may not %s %s.%s there, which is what %s takes: %w", verb, c.Kind.Resource, strings.Split(c.Kind.APIVersion, "/")[0], c.Kind.Doing, err)
	}
	return fmt.Errorf("%s the record: %w", verb, err)
}
