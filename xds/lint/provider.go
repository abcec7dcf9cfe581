package lint

import (
	"fmt"
	"slices"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/xds/model"
)

// provider finds CUSTOM policies that cover the provider that they ask.
func (c *checker) provider(p *securityv1.AuthorizationPolicy, pods []*corev1.Pod) {
	if p.Spec.Action != securityv1beta1.AuthorizationPolicy_CUSTOM {
		return
	}
	to := c.providers[p.Spec.GetProvider().GetName()]
	if to == nil {
		return // which xds/build says
	}
	for _, pod := range pods {
		port, takes := c.takes(pod, to)
		if !takes || !coversPort(p.Spec.Rules, port) {
			continue
		}
		c.find("spec.provider.name", fmt.Sprintf("covers port %s of pod %s/%s, where provider %q itself is: about a question nobody is asked, so it is denied, and with it all that this policy matches", port, pod.Namespace, pod.Name, to.Name),
			"to leave the provider out: a spec.selector without its pods, or to.operation.notPorts: [\""+port+"\"] in each rule")
		return
	}
}

// takes says whether a call to the provider may arrive at the pod, and at which
// of its ports.
func (c *checker) takes(pod *corev1.Pod, to *model.Provider) (port string, takes bool) {
	if slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == to.Host }) {
		return fmt.Sprint(to.Port), true
	}
	for _, svc := range c.objects.Services {
		if !strings.HasPrefix(to.Host, svc.Name+"."+svc.Namespace+".svc.") || svc.Namespace != pod.Namespace ||
			len(svc.Spec.Selector) == 0 || !labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			continue
		}
		for _, p := range svc.Spec.Ports {
			if p.Port == int32(to.Port) {
				return targetPort(pod, p), true
			}
		}
	}
	return "", false
}

func targetPort(pod *corev1.Pod, p corev1.ServicePort) string {
	if p.TargetPort.Type == intstr.String {
		for _, container := range pod.Spec.Containers {
			for _, named := range container.Ports {
				if named.Name == p.TargetPort.StrVal {
					return fmt.Sprint(named.ContainerPort)
				}
			}
		}
	}
	if p.TargetPort.IntVal != 0 {
		return fmt.Sprint(p.TargetPort.IntVal)
	}
	return fmt.Sprint(p.Port)
}

// coversPort reports whether some rule may be about the port.
func coversPort(rules []*securityv1beta1.Rule, port string) bool {
	return slices.ContainsFunc(rules, func(rule *securityv1beta1.Rule) bool {
		return len(rule.GetTo()) == 0 || slices.ContainsFunc(rule.GetTo(), func(to *securityv1beta1.Rule_To) bool {
			o := to.GetOperation()
			return (len(o.GetPorts()) == 0 || slices.Contains(o.GetPorts(), port)) && !slices.Contains(o.GetNotPorts(), port)
		})
	})
}
