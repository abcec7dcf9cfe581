package kube

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// strip reduces an object to what xds/build reads of it: most of a pod is
// nothing to the mesh, and there are many. It is a cache.TransformFunc.
func strip(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return stripPod(o), nil
	case *corev1.Node:
		return &corev1.Node{ObjectMeta: bare(o.ObjectMeta, o.Labels, nil)}, nil
	case *corev1.ServiceAccount:
		return &corev1.ServiceAccount{ObjectMeta: bare(o.ObjectMeta, nil, nil)}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: bare(o.ObjectMeta, o.Labels, read(o.Annotations))}, nil
	case *corev1.Service:
		return &corev1.Service{ObjectMeta: bare(o.ObjectMeta, nil, nil), Spec: o.Spec}, nil
	case *discoveryv1.EndpointSlice:
		out := *o
		out.ObjectMeta = bare(o.ObjectMeta, o.Labels, nil)
		return &out, nil
	}
	return object, nil // a tombstone
}

func stripPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: bare(p.ObjectMeta, p.Labels, read(p.Annotations)),
		Spec: corev1.PodSpec{
			NodeName:           p.Spec.NodeName,
			ServiceAccountName: p.Spec.ServiceAccountName,
			HostNetwork:        p.Spec.HostNetwork,
			Containers:         ports(p.Spec.Containers),
			InitContainers:     ports(p.Spec.InitContainers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out
}

func ports(containers []corev1.Container) (out []corev1.Container) {
	for _, c := range containers {
		if len(c.Ports) > 0 {
			out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return out
}

// bare is the metadata with these labels and annotations only.
func bare(m metav1.ObjectMeta, labels, annotations map[string]string) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
		Labels: labels, Annotations: annotations,
	}
	if i := slices.IndexFunc(m.OwnerReferences, func(r metav1.OwnerReference) bool { return r.Controller != nil && *r.Controller }); i >= 0 {
		out.OwnerReferences = m.OwnerReferences[i : i+1 : i+1]
	}
	return out
}

// readPrefixes begin the annotations that the mesh reads.
var readPrefixes = [...]string{"tacit.mesh/", "config.linkerd.io/", "linkerd.io/", "traffic.sidecar.istio.io/"}

func read(annotations map[string]string) map[string]string {
	var out map[string]string
	for key, value := range annotations {
		for _, prefix := range readPrefixes {
			if strings.HasPrefix(key, prefix) {
				if out == nil {
					out = map[string]string{}
				}
				out[key] = value
			}
		}
	}
	return out
}
