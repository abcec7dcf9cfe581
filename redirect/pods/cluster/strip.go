package cluster

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
)

// strip leaves of an object what is read of it: a node has hundreds of pods,
// and a cluster thousands of namespaces.
func strip(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		o.ObjectMeta = stripMeta(o.ObjectMeta)
		o.Spec = corev1.PodSpec{
			NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork, ServiceAccountName: o.Spec.ServiceAccountName,
			RuntimeClassName: o.Spec.RuntimeClassName,
			InitContainers:   stripContainers(o.Spec.InitContainers), Containers: stripContainers(o.Spec.Containers),
		}
		o.Status = corev1.PodStatus{
			Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs,
			InitContainerStatuses: stripStatuses(o.Status.InitContainerStatuses), ContainerStatuses: stripStatuses(o.Status.ContainerStatuses),
		}
	case *bypass.Bypass:
		o.ManagedFields, o.Status = nil, nil
	case *corev1.Namespace:
		o.ObjectMeta = stripMeta(o.ObjectMeta)
		o.Spec, o.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	}
	return object, nil
}

func stripMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	delete(m.Annotations, corev1.LastAppliedConfigAnnotation)
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
		Labels: m.Labels, Annotations: m.Annotations, DeletionTimestamp: m.DeletionTimestamp,
		OwnerReferences: m.OwnerReferences,
	}
}

// stripContainers keeps the ports and who connects to them on the kubelet's
// part.
func stripContainers(all []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range all {
		if c.LivenessProbe == nil && c.ReadinessProbe == nil && c.StartupProbe == nil && c.Lifecycle == nil {
			continue
		}
		kept = append(kept, corev1.Container{
			Name: c.Name, Ports: c.Ports, LivenessProbe: c.LivenessProbe, ReadinessProbe: c.ReadinessProbe,
			StartupProbe: c.StartupProbe, Lifecycle: c.Lifecycle,
		})
	}
	return kept
}

// stripStatuses keeps what an identity may depend on.
func stripStatuses(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	var kept []corev1.ContainerStatus
	for _, c := range all {
		kept = append(kept, corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.ImageID, ContainerID: c.ContainerID})
	}
	return kept
}
