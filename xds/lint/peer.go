package lint

import (
	"fmt"
	"maps"
	"slices"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
)

// peerAuthentications finds modes of ports that contradict each other or the
// rest of their object.
func (c *checker) peerAuthentications() {
	taken := map[*corev1.Pod]*securityv1.PeerAuthentication{}
	for _, p := range c.objects.PeerAuthentications {
		c.begin("PeerAuthentication", p.Namespace, p.Name)
		selector := p.Spec.GetSelector().GetMatchLabels()
		pods := c.selected(p.Namespace, selector, false)
		if len(selector) == 0 {
			if len(p.Spec.PortLevelMtls) > 0 {
				c.find("spec.portLevelMtls", "has no effect without a selector", "a selector of the pods whose ports these are")
			}
			continue
		}
		c.portModes(p, pods)
		c.twice(p, pods, taken)
	}
}

func (c *checker) portModes(p *securityv1.PeerAuthentication, pods []*corev1.Pod) {
	whole := p.Spec.GetMtls().GetMode()
	for _, port := range slices.Sorted(maps.Keys(p.Spec.PortLevelMtls)) {
		field := fmt.Sprintf("spec.portLevelMtls[%d]", port)
		mode := p.Spec.PortLevelMtls[port].GetMode()
		if mode == whole && mode != securityv1beta1.PeerAuthentication_MutualTLS_UNSET {
			c.find(field, "says the same as spec.mtls.mode", "another mode, or nothing")
		}
		if mode == securityv1beta1.PeerAuthentication_MutualTLS_DISABLE && whole == securityv1beta1.PeerAuthentication_MutualTLS_STRICT {
			c.find(field, "takes plaintext on this port although everything else is STRICT; callers in the mesh still use mTLS",
				"PERMISSIVE, which is what it amounts to, or STRICT")
		}
		if len(pods) > 0 && declaresPorts(pods) && !slices.ContainsFunc(pods, func(pod *corev1.Pod) bool { return hasPort(pod, port) }) {
			c.find(field, "none of the pods selected has a container with this port", "the containers' port, not the Service's")
		}
	}
}

// twice finds pods that two objects select with different modes; the older one
// counts.
func (c *checker) twice(p *securityv1.PeerAuthentication, pods []*corev1.Pod, taken map[*corev1.Pod]*securityv1.PeerAuthentication) {
	for _, pod := range pods {
		other := taken[pod]
		if other == nil {
			taken[pod] = p
			continue
		}
		if p.Spec.GetMtls().GetMode() == other.Spec.GetMtls().GetMode() && maps.EqualFunc(p.Spec.PortLevelMtls, other.Spec.PortLevelMtls, sameMode) {
			continue
		}
		c.find("spec.selector", fmt.Sprintf("selects pod %s, as PeerAuthentication %s does with other modes: of the two only the older counts", pod.Name, other.Name),
			"one object for each pod")
		return
	}
}

func sameMode(x, y *securityv1beta1.PeerAuthentication_MutualTLS) bool {
	return x.GetMode() == y.GetMode()
}

func declaresPorts(pods []*corev1.Pod) bool {
	return slices.ContainsFunc(pods, func(pod *corev1.Pod) bool {
		return slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return len(c.Ports) > 0 })
	})
}

func hasPort(pod *corev1.Pod, port uint32) bool {
	return slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return int64(p.ContainerPort) == int64(port) })
	})
}
