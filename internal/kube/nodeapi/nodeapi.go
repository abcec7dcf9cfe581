// Package nodeapi is the part of the Kubernetes API that an agent of a node
// uses.
//
// client-go's clientset has all of that and every other kind. An agent that
// imported it would take twice the memory, on every node: what is linked into a
// program counts. What does not belong here: kinds that no agent needs.
package nodeapi

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/tacit-mesh/tacit/internal/bypass"
)

// Client has a client for each kind; namespace "" is all of them.
type Client interface {
	Pods(namespace string) Pods
	Nodes() Nodes
	Namespaces() Follow[*corev1.NamespaceList]
	RuntimeClasses() Follow[*nodev1.RuntimeClassList]
	Bypasses() Follow[*bypass.List]
	Events(namespace string) Events
	Tokens(namespace string) Tokens
}

// Follow reads all objects of a kind and what becomes of them.
type Follow[List runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (List, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// Change reads and changes single objects of a kind.
type Change[Object runtime.Object] interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (Object, error)
	Patch(ctx context.Context, name string, kind types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (Object, error)
}

// Pods are read and changed.
type Pods interface {
	Follow[*corev1.PodList]
	Change[*corev1.Pod]
}

// Nodes are changed.
type Nodes interface{ Change[*corev1.Node] }

// Events are written.
type Events interface {
	Create(ctx context.Context, event *corev1.Event, options metav1.CreateOptions) (*corev1.Event, error)
}

// Tokens are made for service accounts.
type Tokens interface {
	CreateToken(ctx context.Context, account string, request *authenticationv1.TokenRequest, options metav1.CreateOptions) (*authenticationv1.TokenRequest, error)
}

// client is the real one.
type client struct {
	core, node rest.Interface
	policy     rest.Interface // of Tacit's own kinds
	parameters runtime.ParameterCodec
}

// New makes a client by how the API is to be reached.
func New(config *rest.Config) (Client, error) {
	kinds := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, nodev1.AddToScheme, authenticationv1.AddToScheme, bypass.AddToScheme} {
		if err := add(kinds); err != nil {
			return nil, fmt.Errorf("kinds of the Kubernetes API: %w", err)
		}
	}
	metav1.AddToGroupVersion(kinds, schema.GroupVersion{Version: "v1"})
	config = rest.CopyConfig(config)
	config.NegotiatedSerializer = serializer.NewCodecFactory(kinds).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if config.QPS > 0 {
		config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(config.QPS, config.Burst)
	}
	connections, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	c := &client{parameters: runtime.NewParameterCodec(kinds)}
	for _, group := range []struct {
		client  *rest.Interface
		path    string
		version schema.GroupVersion
	}{{&c.core, "/api", corev1.SchemeGroupVersion}, {&c.node, "/apis", nodev1.SchemeGroupVersion}, {&c.policy, "/apis", bypass.GroupVersion()}} {
		if group.version == bypass.GroupVersion() { // which has no Protobuf
			config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
		}
		config.APIPath, config.GroupVersion = group.path, &group.version
		made, err := rest.RESTClientForConfigAndClient(config, connections)
		if err != nil {
			return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
		}
		*group.client = made
	}
	return c, nil
}

func (c *client) Pods(namespace string) Pods {
	return objects[*corev1.Pod, *corev1.PodList]{c.core, c.parameters, "pods", namespace,
		func() *corev1.Pod { return &corev1.Pod{} }, func() *corev1.PodList { return &corev1.PodList{} }}
}

func (c *client) Nodes() Nodes {
	return objects[*corev1.Node, *corev1.NodeList]{c.core, c.parameters, "nodes", "", func() *corev1.Node { return &corev1.Node{} }, nil}
}

func (c *client) Namespaces() Follow[*corev1.NamespaceList] {
	return objects[*corev1.Namespace, *corev1.NamespaceList]{c.core, c.parameters, "namespaces", "",
		nil, func() *corev1.NamespaceList { return &corev1.NamespaceList{} }}
}

func (c *client) RuntimeClasses() Follow[*nodev1.RuntimeClassList] {
	return objects[*nodev1.RuntimeClass, *nodev1.RuntimeClassList]{c.node, c.parameters, "runtimeclasses", "",
		nil, func() *nodev1.RuntimeClassList { return &nodev1.RuntimeClassList{} }}
}

func (c *client) Bypasses() Follow[*bypass.List] {
	return objects[*bypass.Bypass, *bypass.List]{c.policy, c.parameters, bypass.Resource, "",
		nil, func() *bypass.List { return &bypass.List{} }}
}

func (c *client) Events(namespace string) Events {
	return objects[*corev1.Event, *corev1.EventList]{c.core, c.parameters, "events", namespace, func() *corev1.Event { return &corev1.Event{} }, nil}
}

func (c *client) Tokens(namespace string) Tokens { return tokens{c, namespace} }

type tokens struct {
	*client
	namespace string
}

// CreateToken implements [Tokens].
func (t tokens) CreateToken(ctx context.Context, account string, request *authenticationv1.TokenRequest, options metav1.CreateOptions) (*authenticationv1.TokenRequest, error) {
	made := &authenticationv1.TokenRequest{}
	err := t.core.Post().Namespace(t.namespace).Resource("serviceaccounts").Name(account).SubResource("token").
		VersionedParams(&options, t.parameters).Body(request).Do(ctx).Into(made)
	return made, err
}
