package build

import (
	"slices"

	typev1beta1 "istio.io/api/type/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tacit-mesh/tacit/xds/model"
)

// policyScope is which workloads a policy covers, and which of their ports.
type policyScope struct {
	namespace string // "" covers all
	scope     model.PolicyScope
	selects   []func(*PolicyTarget) bool // alternatives, of model.ScopeSelector
	ports     []uint16                   // none: all
}

func (t *policyScope) covers(w *PolicyTarget) bool {
	if t.namespace != "" && t.namespace != w.Namespace {
		return false
	}
	return t.scope != model.ScopeSelector || slices.ContainsFunc(t.selects, func(f func(*PolicyTarget) bool) bool { return f(w) })
}

// scope of an object without a selector, or with one without labels, is its
// namespace, and in the root namespace the mesh. It returns false for an object
// that is about none of our workloads.
func (b *policyBuilder) scope(namespace string, selector labels.Selector, refs []*typev1beta1.PolicyTargetReference, st *PolicyStatus) (policyScope, bool) {
	t := policyScope{namespace: namespace, scope: model.ScopeNamespace}
	if namespace == b.root {
		t = policyScope{scope: model.ScopeGlobal}
	}
	if selector != nil && !selector.Empty() {
		t.scope = model.ScopeSelector
		t.selects = append(t.selects, func(w *PolicyTarget) bool { return selector.Matches(labels.Set(w.Labels)) })
	}
	if len(refs) == 0 {
		return t, true
	}
	if t.scope == model.ScopeSelector {
		st.say("spec.selector: not used: an object has a selector or targetRefs, not both")
	}
	t = policyScope{namespace: namespace, scope: model.ScopeSelector}
	narrow, ours := true, false
	for _, ref := range refs {
		service, known := b.targetRef(&t, ref, st)
		ours = ours || known
		if narrow = narrow && service != nil; narrow {
			narrow = b.addPorts(&t, service, st)
		}
	}
	if !narrow {
		t.ports = nil
	}
	return t, ours
}

// targetRef adds what one reference selects. It returns the Service, if it is
// one, and false for a kind that other proxies are there for.
func (b *policyBuilder) targetRef(t *policyScope, ref *typev1beta1.PolicyTargetReference, st *PolicyStatus) (*corev1.Service, bool) {
	if ns := ref.GetNamespace(); ns != "" && ns != t.namespace {
		st.say("spec.targetRefs: not enforced on %s %s: it is in another namespace", ref.GetKind(), ref.GetName())
		return nil, true
	}
	switch group, name := ref.GetGroup(), ref.GetName(); {
	case ref.GetKind() == "Service" && (group == "" || group == "core"):
		service := b.services[objectName{t.namespace, name}]
		if service == nil || len(service.Spec.Selector) == 0 {
			st.say("spec.targetRefs: no Service %s that selects pods", name)
			return &corev1.Service{}, true
		}
		selector := labels.SelectorFromSet(service.Spec.Selector)
		t.selects = append(t.selects, func(w *PolicyTarget) bool { return selector.Matches(labels.Set(w.Labels)) })
		return service, true
	case ref.GetKind() == "Pod" && group == "":
		t.selects = append(t.selects, func(w *PolicyTarget) bool { return w.Name == name })
		return nil, true
	case isController(group, ref.GetKind()):
		t.selects = append(t.selects, func(w *PolicyTarget) bool { return w.OwnerKind == ref.GetKind() && w.OwnerName == name })
		return nil, true
	}
	st.say("spec.targetRefs: not enforced on %s %s: such a policy is for a proxy of its own; name a Service, a workload or a Pod", ref.GetKind(), ref.GetName())
	return nil, false
}

func isController(group, kind string) bool {
	switch kind {
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet":
		return group == "apps"
	case "Job", "CronJob":
		return group == "batch"
	}
	return false
}

// addPorts returns false if it is not known which ports of the pods are the
// service's, because no pod says which port has the name.
func (b *policyBuilder) addPorts(t *policyScope, service *corev1.Service, st *PolicyStatus) bool {
	for _, p := range service.Spec.Ports {
		if !isTCP(p.Protocol) {
			continue
		}
		ports := b.portNumbers[t.namespace][p.TargetPort.StrVal]
		if port, err := targetPort(p); err == nil && port != 0 {
			ports = []uint16{port}
		}
		if len(ports) == 0 {
			st.say("spec.targetRefs: no pod has the target port %s of Service %s, so all ports of its pods are covered", p.TargetPort.String(), service.Name)
			return false
		}
		t.ports = append(t.ports, ports...)
	}
	slices.Sort(t.ports)
	t.ports = slices.Compact(t.ports)
	return true
}

func istioSelector(s *typev1beta1.WorkloadSelector) labels.Selector {
	return labels.SelectorFromSet(s.GetMatchLabels())
}

// labelSelector is nothing on an error, and selects nothing then.
func labelSelector(s *metav1.LabelSelector, st *PolicyStatus) labels.Selector {
	if s == nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		st.say("spec.selector: %v", err)
		return labels.Nothing()
	}
	return selector
}

// controllerOf is the kind and name of what made a pod, a Deployment in place
// of its ReplicaSet; empty if nothing did.
func controllerOf(pod *corev1.Pod) (kind, name string) {
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil {
		return "", ""
	}
	name, is := controller(pod)
	switch is {
	case model.TypeDeployment:
		return "Deployment", name
	case model.TypeCronJob:
		return "CronJob", name
	case model.TypeJob:
		return "Job", name
	case model.TypePod:
	}
	return owner.Kind, name
}

// selectorKeys are the keys of the labels that a selector looks at.
func selectorKeys(s labels.Selector) (out []string) {
	if s == nil {
		return nil
	}
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		out = append(out, r.Key())
	}
	return out
}
