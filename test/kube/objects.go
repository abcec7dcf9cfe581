package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/remotecommand"
	watchtools "k8s.io/client-go/tools/watch"

	corev1 "k8s.io/api/core/v1"
)

// Apply creates or changes the objects of a YAML text, on the server's side.
func (c *Cluster) Apply(ctx context.Context, text string) error {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096)
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("apply: %w in\n%s", err, text)
		}
		if len(object.Object) == 0 {
			continue // nothing but a comment
		}
		resource, err := c.resource(&object)
		if err != nil {
			return err
		}
		_, err = resource.Apply(ctx, object.GetName(), &object, metav1.ApplyOptions{FieldManager: "test", Force: true})
		if err != nil {
			return fmt.Errorf("apply %s %s/%s: %w", object.GetKind(), object.GetNamespace(), object.GetName(), err)
		}
	}
}

// Patch merges a text, YAML or JSON, into an object; null takes a field away.
func (c *Cluster) Patch(ctx context.Context, apiVersion, kind, namespace, name, text string) error {
	patch, err := yaml.ToJSON([]byte(text))
	if err != nil {
		return err
	}
	var object unstructured.Unstructured
	object.SetAPIVersion(apiVersion)
	object.SetKind(kind)
	object.SetNamespace(namespace)
	resource, err := c.resource(&object)
	if err != nil {
		return err
	}
	if _, err := resource.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("patch %s %s/%s: %w", kind, namespace, name, err)
	}
	return nil
}

// resource is where the API server keeps objects of this one's kind and
// namespace.
func (c *Cluster) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) { // made only now, as custom resources are
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dynamic.Resource(mapping.Resource), nil
	}
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return c.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}

// Await watches an object until check finds nothing to complain of. An object
// that does not exist is waited for.
func Await[T any](ctx context.Context, c *Cluster, namespace, name string, check func(*T) error) error {
	var object unstructured.Unstructured
	kinds, _, err := scheme.Scheme.ObjectKinds(any(new(T)).(runtime.Object))
	if err != nil {
		return err
	}
	object.SetGroupVersionKind(kinds[0])
	object.SetNamespace(namespace)
	resource, err := c.resource(&object)
	if err != nil {
		return err
	}
	last := errors.New("there is none")
	_, err = watchtools.UntilWithSync(ctx, listWatch(resource, name), &unstructured.Unstructured{}, nil, func(event watch.Event) (bool, error) {
		if event.Type == watch.Deleted {
			last = errors.New("it is gone")
			return false, nil
		}
		typed := new(T)
		content := event.Object.(*unstructured.Unstructured).UnstructuredContent()
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(content, typed); err != nil {
			return false, err
		}
		last = check(typed)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s %s/%s: %w, last: %w", kinds[0].Kind, namespace, name, err, last)
	}
	return nil
}

func listWatch(resource dynamic.ResourceInterface, name string) cache.ListerWatcher {
	selector := fields.OneTermEqualSelector("metadata.name", name).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return resource.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return resource.Watch(ctx, options)
		},
	}
}

// AwaitDeployment waits until all replicas are of the newest revision and
// available, and none of an older one is left.
func (c *Cluster) AwaitDeployment(ctx context.Context, namespace, name string) error {
	return Await(ctx, c, namespace, name, func(d *appsv1.Deployment) error {
		s, want := d.Status, *d.Spec.Replicas
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.Replicas != want || s.AvailableReplicas != want {
			return fmt.Errorf("of %d replicas %d are updated and %d available, %d in all", want, s.UpdatedReplicas, s.AvailableReplicas, s.Replicas)
		}
		return nil
	})
}

// AwaitDaemonSet waits until every node has a ready pod of the newest
// revision. The status of a DaemonSet does not tell: as long as the old pod of
// a node is draining it speaks of that.
func (c *Cluster) AwaitDaemonSet(ctx context.Context, namespace, name string) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 250*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		set, err := c.Client.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		pods, err := c.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(set.Spec.Selector)})
		if err != nil {
			return false, err
		}
		last = daemonsReady(set, pods.Items)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for DaemonSet %s/%s: %w, last: %w", namespace, name, err, last)
	}
	return nil
}

// podGeneration is the label of a DaemonSet's pods with the number of its
// template that they are made of.
const podGeneration = "pod-template-generation"

// daemonsReady says what is missing of a ready pod of the newest revision on
// each node.
func daemonsReady(set *appsv1.DaemonSet, pods []corev1.Pod) error {
	newest := set.Annotations[appsv1.DeprecatedTemplateGeneration]
	ready := int32(0)
	for i := range pods {
		if pods[i].Labels[podGeneration] == newest && pods[i].DeletionTimestamp == nil && podReady(&pods[i]) == nil {
			ready++
		}
	}
	if want := set.Status.DesiredNumberScheduled; set.Status.ObservedGeneration < set.Generation || want == 0 || ready < want {
		return fmt.Errorf("%d of %d nodes have a ready pod of revision %s", ready, want, newest)
	}
	return nil
}

// AwaitPod waits until a pod is ready.
func (c *Cluster) AwaitPod(ctx context.Context, namespace, name string) error {
	return Await(ctx, c, namespace, name, podReady)
}

func podReady(pod *corev1.Pod) error {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	why := fmt.Sprintf("its phase is %s", pod.Status.Phase)
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Waiting != nil {
			why += fmt.Sprintf(", container %s waits: %s %s", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message)
		}
	}
	return errors.New(why)
}

// Delete removes an object and waits until it is gone.
func (c *Cluster) Delete(ctx context.Context, apiVersion, kind, namespace, name string) error {
	var object unstructured.Unstructured
	object.SetAPIVersion(apiVersion)
	object.SetKind(kind)
	object.SetNamespace(namespace)
	resource, err := c.resource(&object)
	if err != nil {
		return err
	}
	if err := resource.Delete(ctx, name, metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	gone := func(store cache.Store) (bool, error) { return len(store.List()) == 0, nil }
	_, err = watchtools.UntilWithSync(ctx, listWatch(resource, name), &unstructured.Unstructured{}, gone, func(event watch.Event) (bool, error) {
		return event.Type == watch.Deleted, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the end of %s %s/%s: %w", kind, namespace, name, err)
	}
	return nil
}

// Exec runs a command in the first container of a pod and returns its
// standard output.
func (c *Cluster) Exec(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	request := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	var out, complaint bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &complaint}); err != nil {
		return out.String(), fmt.Errorf("%v in %s/%s: %w: %s", command, namespace, pod, err, complaint.String())
	}
	return out.String(), nil
}

// CreateNamespace creates a namespace in which pods may be made at once.
func (c *Cluster) CreateNamespace(ctx context.Context, name string, labels map[string]string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := c.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	return Await(ctx, c, name, "default", func(*corev1.ServiceAccount) error { return nil })
}

// NodeNames are the names of all nodes, in order.
func (c *Cluster) NodeNames(ctx context.Context) ([]string, error) {
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	names := make([]string, len(nodes.Items))
	for i, node := range nodes.Items {
		names[i] = node.Name
	}
	slices.Sort(names)
	return names, nil
}

// PodAddresses are those of a pod, of each family that it has.
func (c *Cluster) PodAddresses(ctx context.Context, namespace, name string) ([]string, error) {
	pod, err := c.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, ip := range pod.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out, nil
}

// ServiceAddresses are the virtual ones of a service.
func (c *Cluster) ServiceAddresses(ctx context.Context, namespace, name string) ([]string, error) {
	service, err := c.Client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return service.Spec.ClusterIPs, nil
}

// podLogs is how the logs of all containers of a namespace end, and what its
// events say.
func (c *Cluster) podLogs(ctx context.Context, namespace string) (string, error) {
	var out strings.Builder
	pods, err := c.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, pod := range pods.Items {
		for _, previous := range []bool{true, false} {
			lines := int64(40)
			text, err := c.Client.CoreV1().Pods(namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: &lines, Previous: previous}).DoRaw(ctx)
			if err != nil && previous {
				continue // there was none
			}
			fmt.Fprintf(&out, "\n%s/%s on %s (%v, before a restart: %v) ends with:\n%s", namespace, pod.Name, pod.Spec.NodeName, podReady(&pod), previous, text)
		}
	}
	events, err := c.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return out.String(), err
	}
	for _, event := range events.Items {
		if event.Type == corev1.EventTypeWarning {
			fmt.Fprintf(&out, "%s %s: %s: %s\n", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Reason, event.Message)
		}
	}
	return out.String(), nil
}
