package revoked

import (
	"context"
	"encoding/json"
	"fmt"

	authv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/xds/kinds"
)

var resource = schema.GroupVersionResource{Group: "policy.tacit.mesh", Version: "v1alpha1", Resource: "revokedidentities"}

// Cluster has the records as objects in the namespace of Tacit. Whoever may
// create them there may revoke.
type Cluster struct{ *cluster.Cluster }

func (c Cluster) objects() dynamic.ResourceInterface {
	return c.Dynamic.Resource(resource).Namespace(c.Namespace)
}

// List implements [Store].
func (c Cluster) List(ctx context.Context) ([]*kinds.RevokedIdentity, error) {
	list, err := c.objects().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, c.advise("list", err)
	}
	var all []*kinds.RevokedIdentity
	for _, item := range list.Items {
		r := &kinds.RevokedIdentity{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, r); err != nil {
			return nil, fmt.Errorf("RevokedIdentity %s: %w", item.GetName(), err)
		}
		all = append(all, r)
	}
	return all, nil
}

// Create implements [Store].
func (c Cluster) Create(ctx context.Context, r *kinds.RevokedIdentity) error {
	r.APIVersion, r.Kind, r.Namespace = kinds.RevokedIdentityVersion, "RevokedIdentity", c.Namespace
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(r)
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	_, err = c.objects().Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
	return c.advise("create", err)
}

// Update implements [Store].
func (c Cluster) Update(ctx context.Context, r *kinds.RevokedIdentity) error {
	patch, err := json.Marshal(map[string]any{"spec": r.Spec})
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	_, err = c.objects().Patch(ctx, r.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return c.advise("patch", err)
}

// Who implements [Store]: the user as the API server knows it.
func (c Cluster) Who(ctx context.Context) (string, error) {
	review, err := c.Client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("who is revoking: %w", err)
	}
	return review.Status.UserInfo.Username, nil
}

// advise says what to do about an answer of the API.
func (c Cluster) advise(verb string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the cluster does not know RevokedIdentity: bring it this version with tacit upgrade: %w", err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("you may not %s revokedidentities.policy.tacit.mesh in namespace %s, which is what revoking takes: %w", verb, c.Namespace, err)
	}
	return fmt.Errorf("%s the record of a revocation: %w", verb, err)
}
