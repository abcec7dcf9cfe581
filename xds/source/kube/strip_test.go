package kube

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// What is taken away means nothing to the mesh, and what is large is away.
func TestStrip(t *testing.T) {
	meta := metav1.ObjectMeta{
		Namespace: "shop", Name: "web-5d8-x", UID: "u", CreationTimestamp: metav1.Unix(1, 0), ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}},
		Labels: map[string]string{"app": "web", "pod-template-hash": "5d8", discoveryv1.LabelServiceName: "s", "tacit.mesh/dataplane": "enabled", corev1.LabelTopologyZone: "z"},
		Annotations: map[string]string{
			"tacit.mesh/redirection": "enabled", "tacit.mesh/skip-inbound-ports": "1", "config.linkerd.io/skip-outbound-ports": "2",
			"traffic.sidecar.istio.io/excludeOutboundIPRanges": "198.18.0.0/24", "kubectl.kubernetes.io/last-applied-configuration": "long",
		},
		OwnerReferences: []metav1.OwnerReference{{Kind: "X", Name: "x"}, {Kind: "ReplicaSet", Name: "web-5d8", Controller: new(true)}},
	}
	pod := &corev1.Pod{
		ObjectMeta: meta,
		Spec: corev1.PodSpec{
			NodeName: "n1", ServiceAccountName: "web", Volumes: []corev1.Volume{{Name: "v"}},
			Containers: []corev1.Container{{
				Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "e", Value: "secret"}}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("1")}},
			}, {Name: "without ports", Args: []string{"secret"}}},
			InitContainers: []corev1.Container{{Name: "i", RestartPolicy: new(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 9090}}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "198.18.0.1", PodIPs: []corev1.PodIP{{IP: "198.18.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse, Message: "long"}},
		},
	}
	pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(2, 0)}
	node := &corev1.Node{ObjectMeta: meta, Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{Names: []string{"long"}}}}}
	node.Name = "n1"
	namespace := &corev1.Namespace{ObjectMeta: meta}
	namespace.Name, namespace.Namespace = "shop", ""
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: "198.18.9.1", Ports: []corev1.ServicePort{
		{Name: "a", Port: 80, TargetPort: intstr.FromString("http")}, {Name: "b", Port: 90, TargetPort: intstr.FromString("side")},
	}, Selector: map[string]string{"app": "web"}}}
	service.Name = "t"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"198.18.0.1"}}},
	}
	other := service.DeepCopy()
	other.Name, other.Spec.Ports = "s", []corev1.ServicePort{{Port: 1}}
	account := &corev1.ServiceAccount{ObjectMeta: meta, Secrets: []corev1.ObjectReference{{Name: "secret"}}}
	account.Name = "web"

	settings := build.Settings{Accounts: true, Skips: model.SkipSettings{Mode: model.SkipsAny}}
	whole := build.Build(settings, build.Objects{
		Pods: []*corev1.Pod{pod}, Nodes: []*corev1.Node{node}, Namespaces: []*corev1.Namespace{namespace},
		Services: []*corev1.Service{service, other}, EndpointSlices: []*discoveryv1.EndpointSlice{slice}, ServiceAccounts: []*corev1.ServiceAccount{account},
	})
	stripped := build.Build(settings, build.Objects{
		Pods: []*corev1.Pod{bared(t, pod)}, Nodes: []*corev1.Node{bared(t, node)}, Namespaces: []*corev1.Namespace{bared(t, namespace)},
		Services: []*corev1.Service{bared(t, service), bared(t, other)}, EndpointSlices: []*discoveryv1.EndpointSlice{bared(t, slice)},
		ServiceAccounts: []*corev1.ServiceAccount{bared(t, account)},
	})
	if len(whole.Workloads) != 1 || len(whole.Workloads[0].Services) != 2 || len(whole.Workloads[0].SkipInbound) != 1 || len(whole.Identities) != 1 {
		t.Fatalf("the example shows too little: %+v", whole)
	}
	if diff := cmp.Diff(whole, stripped, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
	small := bared(t, pod)
	if len(small.ManagedFields)+len(small.Spec.Volumes)+len(small.Spec.Containers[0].Env) > 0 || len(small.Spec.Containers) != 1 || len(small.Annotations) != 4 || len(small.Status.Conditions) != 1 {
		t.Errorf("left of the pod: %+v", small)
	}
}

func bared[T any](t *testing.T, object T) T {
	t.Helper()
	out, err := strip(object)
	if err != nil {
		t.Fatal(err)
	}
	return out.(T)
}
