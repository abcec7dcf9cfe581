package pods

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/redirect/enrol"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Reader reads from Kubernetes objects which pods a node has and what is
// wanted of them.
type Reader struct {
	Node        string
	TrustDomain string
	Skips       model.SkipSettings
	DNS         DNSSettings
	// Release lets all pods go, whatever their labels say.
	Release bool
}

// Here reports whether the pod runs on this node and in a network namespace
// of its own.
func (r Reader) Here(p *corev1.Pod) bool {
	return p.Spec.NodeName == r.Node && !p.Spec.HostNetwork &&
		p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// mirrored, on the API's copy of a static pod, is the UID by which the kubelet
// and the container runtime know that pod.
const mirrored = "kubernetes.io/config.hash"

// RuntimeUID is by what UID the node's container runtime knows a pod.
func RuntimeUID(p *corev1.Pod) string {
	return cmp.Or(p.Annotations[mirrored], manifests.PodUID(string(p.UID), p.Namespace, p.Name))
}

// Read says what is wanted of a pod. A namespace without labels will do where
// it is not known.
func (r Reader) Read(p *corev1.Pod, namespace *corev1.Namespace) Pod {
	skips, errs := model.ReadSkips(p.Annotations, namespace.Annotations, r.Skips)
	var faults []string
	for _, err := range errs {
		faults = append(faults, err.Error())
	}
	if v, ok := p.Labels[enrol.Label]; ok && v != enrol.Enabled && v != "disabled" {
		faults = append(faults, fmt.Sprintf("pod label %s: %q is neither enabled nor disabled, and taken for disabled", enrol.Label, v))
	}
	if n := protocol.LengthOf(p.Labels); n > protocol.MaxLabels {
		faults = append(faults, fmt.Sprintf("labels of %d bytes are more than the %d that the proxy is told: an identity that depends on them is not given", n, protocol.MaxLabels))
	}
	capture := !r.Release && enrol.Wanted(p.Labels, namespace.Labels)
	var made model.Composition
	if capture { // else nobody asks, and each change of it would be looked into
		made = composition(p)
	}
	if n := protocol.LengthOfComposition(made); n > protocol.MaxComposition {
		faults = append(faults, fmt.Sprintf("names of containers, images and owners of %d bytes are more than the %d that the proxy is told: an identity that depends on them is not given", n, protocol.MaxComposition))
	}
	servers, fault := r.DNS.read(p)
	if fault != "" {
		faults = append(faults, fault)
	}
	return Pod{
		Pod: handoff.Pod{
			DNS:            len(servers) > 0,
			UID:            manifests.PodUID(string(p.UID), p.Namespace, p.Name),
			Name:           p.Name,
			Namespace:      p.Namespace,
			ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"),
			TrustDomain:    r.TrustDomain,
			Addresses:      addresses(p),
			Labels:         p.Labels,
			Composition:    made,
		},
		RuntimeUID: RuntimeUID(p),
		Capture:    capture,
		Skips:      skips,
		DNSServers: servers,
		Faults:     faults,
		Probes:     probes(p),
	}
}

// composition is what the kubelet has said of the containers, and who owns the
// pod.
func composition(p *corev1.Pod) (c model.Composition) {
	add := func(all []corev1.ContainerStatus, first bool) {
		for _, s := range all {
			c.Containers = append(c.Containers, model.Container{
				Name: s.Name, Init: first, Image: s.Image, ImageID: s.ImageID, Started: s.ContainerID != "",
			})
		}
	}
	add(p.Status.InitContainerStatuses, true)
	add(p.Status.ContainerStatuses, false)
	for _, o := range p.OwnerReferences {
		c.Owners = append(c.Owners, model.Owner{Kind: o.Kind, Name: o.Name, UID: string(o.UID)})
	}
	return c
}

func addresses(p *corev1.Pod) []netip.Addr {
	var all []netip.Addr
	for _, ip := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(all, a.Unmap()) {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// probes are the ports to which the kubelet connects: those of the probes and
// lifecycle hooks that go to the pod itself.
func probes(p *corev1.Pod) model.PortSet {
	var ports []uint16
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		add := func(host string, port intstr.IntOrString) {
			if n := portNumber(port, c); n != 0 && (host == "" || isAddress(p, host)) && !slices.Contains(ports, n) {
				ports = append(ports, n)
			}
		}
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			switch {
			case probe == nil:
			case probe.HTTPGet != nil:
				add(probe.HTTPGet.Host, probe.HTTPGet.Port)
			case probe.TCPSocket != nil:
				add(probe.TCPSocket.Host, probe.TCPSocket.Port)
			case probe.GRPC != nil:
				add("", intstr.FromInt32(probe.GRPC.Port))
			}
		}
		if c.Lifecycle == nil {
			continue
		}
		for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			switch {
			case hook == nil:
			case hook.HTTPGet != nil:
				add(hook.HTTPGet.Host, hook.HTTPGet.Port)
			case hook.TCPSocket != nil:
				add(hook.TCPSocket.Host, hook.TCPSocket.Port)
			}
		}
	}
	slices.Sort(ports)
	var set model.PortSet
	for _, n := range ports {
		set = append(set, model.PortRange{First: n, Last: n})
	}
	return set
}

func isAddress(p *corev1.Pod, host string) bool {
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && slices.Contains(addresses(p), a.Unmap())
}

// portNumber is 0 for a port that is none: such a probe fails by itself.
func portNumber(port intstr.IntOrString, c corev1.Container) uint16 {
	n := port.IntVal
	if port.Type == intstr.String {
		for _, named := range c.Ports {
			if named.Name == port.StrVal {
				n = named.ContainerPort
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0
	}
	return uint16(n)
}
