package nodeapi

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// objects are those of a kind, in a namespace or in all. client-go's gentype is
// the same for everybody; as it brings what its tests need, a program that
// imports it has half of an API server's library for OpenAPI in it.
type objects[Object, List runtime.Object] struct {
	api        rest.Interface
	parameters runtime.ParameterCodec
	resource   string
	namespace  string
	object     func() Object
	list       func() List // nil of kinds that nobody lists
}

// request completes the path of a request, which an object's name may follow.
func (o objects[Object, List]) request(r *rest.Request) *rest.Request {
	return r.NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource)
}

// List implements [Follow].
func (o objects[Object, List]) List(ctx context.Context, options metav1.ListOptions) (List, error) {
	list := o.list()
	err := o.request(o.api.Get()).VersionedParams(&options, o.parameters).Do(ctx).Into(list)
	return list, err
}

// Watch implements [Follow]. It ends after the options' time, on the server's
// part.
func (o objects[Object, List]) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	return o.request(o.api.Get()).VersionedParams(&options, o.parameters).Watch(ctx)
}

// Get implements [Change].
func (o objects[Object, List]) Get(ctx context.Context, name string, options metav1.GetOptions) (Object, error) {
	got := o.object()
	err := o.request(o.api.Get()).Name(name).VersionedParams(&options, o.parameters).Do(ctx).Into(got)
	return got, err
}

// Patch implements [Change].
func (o objects[Object, List]) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (Object, error) {
	got := o.object()
	err := o.request(o.api.Patch(kind)).Name(name).SubResource(subresources...).
		VersionedParams(&options, o.parameters).Body(data).Do(ctx).Into(got)
	return got, err
}

// Create makes an object.
func (o objects[Object, List]) Create(ctx context.Context, object Object, options metav1.CreateOptions) (Object, error) {
	got := o.object()
	err := o.request(o.api.Post()).VersionedParams(&options, o.parameters).Body(object).Do(ctx).Into(got)
	return got, err
}
