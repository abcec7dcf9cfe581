package check

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// cilium has two settings that keep Tacit from its work.
func (s *state) cilium(ctx context.Context) {
	const topic, subject = "CNI", "Cilium"
	settings, err := s.c.Client.CoreV1().ConfigMaps("kube-system").Get(ctx, "cilium-config", meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return
	}
	if err != nil {
		s.unknown(topic, subject, err)
		return
	}
	before := len(s.findings)
	config := settings.Data
	if config["cni-exclusive"] != "false" {
		s.add(Broken, topic, subject, "its exclusive mode takes other plugins out of the configuration, so pods start before they are captured",
			"set cni.exclusive=false in Cilium's values")
	}
	socketLB := config["bpf-lb-sock"] == "true" || config["kube-proxy-replacement"] == "true" || config["kube-proxy-replacement"] == "strict"
	if socketLB && config["bpf-lb-sock-hostns-only"] != "true" {
		s.add(Broken, topic, subject, "its socket load balancing turns a service into one of its pods before Tacit sees the connection:"+
			" retries, affinity and policies on services do not hold",
			"set socketLB.hostNamespaceOnly=true in Cilium's values")
	}
	if config["enable-bpf-masquerade"] == "true" {
		s.add(Risky, topic, subject, "with its BPF masquerading, probes of the kubelet may reach pods from another address than Tacit lets through",
			"set bpf.masquerade=false in Cilium's values, or see whether pods with probes stay ready under STRICT")
	}
	if len(s.findings) == before {
		s.add(Fine, topic, subject, "its settings leave room for Tacit", "")
	}
}

// calico can load-balance at the socket, too.
func (s *state) calico(ctx context.Context) {
	const topic, subject = "CNI", "Calico"
	felix := s.c.Dynamic.Resource(schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "felixconfigurations"})
	settings, err := felix.Get(ctx, "default", meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return
	}
	if err != nil {
		s.unknown(topic, subject, err)
		return
	}
	bpf, _, _ := unstructured.NestedBool(settings.Object, "spec", "bpfEnabled")
	mode, _, _ := unstructured.NestedString(settings.Object, "spec", "bpfConnectTimeLoadBalancing")
	if bpf && mode != "Disabled" {
		s.add(Broken, topic, subject, "its BPF data plane turns a service into one of its pods before Tacit sees the connection",
			"set bpfConnectTimeLoadBalancing to Disabled and bpfHostNetworkedNATWithoutCTLB to Enabled in FelixConfiguration default")
		return
	}
	s.add(Fine, topic, subject, "its settings leave room for Tacit", "")
}
