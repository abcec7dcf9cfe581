package build

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/xds/kinds"
)

// Services and Linkerd's Servers may call a port of pods by its name. Policies
// are about numbers, so theirs are all that pods of the namespace give the name.

// nameTargets notes the names that policies mean ports by: those of Services that
// are targeted, and of Servers.
func (p *policySet) nameTargets(o metav1.Object, refs []objectName) {
	for _, ref := range refs {
		svc := p.services[ref]
		if svc == nil || !p.targeted[ref] {
			continue
		}
		for _, port := range svc.Spec.Ports {
			if port.TargetPort.Type == intstr.String {
				p.named[objectName{ref.namespace, port.TargetPort.StrVal}] = true
			}
		}
	}
	if s, ok := o.(*kinds.Server); ok && s.Spec.Port.Type == intstr.String {
		p.named[objectName{s.Namespace, s.Spec.Port.StrVal}] = true
	}
}

// setPortNames notes what a pod calls its ports, in place of what it did. It is
// true if a name that policies use has other numbers now.
func (p *policySet) setPortNames(namespace string, before, now *corev1.Pod) (stale bool) {
	had, has := portNames(before), portNames(now)
	for name, number := range had {
		stale = p.countPort(objectName{namespace, name}, number, -1) || stale
	}
	for name, number := range has {
		stale = p.countPort(objectName{namespace, name}, number, 1) || stale
	}
	return stale && !maps.Equal(had, has)
}

func (p *policySet) countPort(name objectName, number uint16, by int) (changed bool) {
	if p.numbers[name] == nil {
		p.numbers[name] = map[uint16]int{}
	}
	of := p.numbers[name]
	before := of[number]
	if of[number] += by; of[number] == 0 {
		delete(of, number)
	}
	if len(of) == 0 {
		delete(p.numbers, name)
	}
	return p.named[name] && (before == 0 || before+by == 0)
}

func portNames(pod *corev1.Pod) (out map[string]uint16) {
	if pod == nil {
		return nil
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, port := range c.Ports {
			if number := namedPort(pod, port.Name); port.Name != "" && number != 0 {
				if out == nil {
					out = map[string]uint16{}
				}
				out[port.Name] = number
			}
		}
	}
	return out
}

// portNumbers are those of the names that policies use.
func (p *policySet) portNumbers() map[string]map[string][]uint16 {
	out := map[string]map[string][]uint16{}
	for name := range p.named {
		if out[name.namespace] == nil {
			out[name.namespace] = map[string][]uint16{}
		}
		out[name.namespace][name.name] = slices.Sorted(maps.Keys(p.numbers[name]))
	}
	return out
}
