package lint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/xds/model"
)

// place is where a provider takes questions.
type place struct {
	pod  *corev1.Pod
	port string
}

func (p place) String() string {
	return fmt.Sprintf("port %s of pod %s/%s", p.port, p.pod.Namespace, p.pod.Name)
}

// link is a CUSTOM policy that covers a provider other than the one that it
// asks: questions to the first are requests that the second is asked about.
type link struct {
	policy        Finding
	covered, asks string // providers
	at            place  // where the first is
}

// provider finds CUSTOM policies that cover the provider that they ask, and notes
// which others they cover.
func (c *checker) provider(p *securityv1.AuthorizationPolicy, pods []*corev1.Pod) {
	asks := p.Spec.GetProvider().GetName()
	if p.Spec.Action != securityv1beta1.AuthorizationPolicy_CUSTOM || c.providers[asks] == nil {
		return // that there is none xds/build says
	}
	for _, name := range slices.Sorted(maps.Keys(c.providers)) {
		places := c.placesOf(name)
		i := slices.IndexFunc(places, func(at place) bool {
			return slices.Contains(pods, at.pod) && coversQuestions(p.Spec.Rules, at.port, questionPath(c.providers[name]))
		})
		switch {
		case i < 0:
		case name != asks:
			c.links = append(c.links, link{policy: c.at, covered: name, asks: asks, at: places[i]})
		default:
			c.find("spec.provider.name", fmt.Sprintf("covers %v, where provider %q itself is: about a question nobody is asked, so it is denied, and with it all that this policy matches", places[i], asks),
				"to leave the provider out: a spec.selector without its pods, or to.operation.notPorts: [\""+places[i].port+"\"] in each rule")
		}
	}
}

// circles finds policies of which each has a provider asked about questions to
// the next one's.
func (c *checker) circles() {
	for _, l := range c.links {
		if !c.leads(l.asks, l.covered, map[string]bool{}) {
			continue
		}
		c.at = l.policy
		c.find("spec.provider.name", fmt.Sprintf("covers %v, where provider %q is, so %q is asked about questions to it; and about those to %[3]q, by other policies, %[2]q is asked in turn: no question is ever answered, and all that these policies match is denied", l.at, l.covered, l.asks),
			"to leave providers out: a spec.selector without their pods, or to.operation.notPorts: [\""+l.at.port+"\"] in each rule")
	}
}

// leads reports whether questions to one provider have another asked.
func (c *checker) leads(from, to string, seen map[string]bool) bool {
	if from == to {
		return true
	}
	seen[from] = true
	return slices.ContainsFunc(c.links, func(l link) bool {
		return l.covered == from && !seen[l.asks] && c.leads(l.asks, to, seen)
	})
}

// placesOf is where a provider takes questions, in the mesh.
func (c *checker) placesOf(name string) []place {
	places, ok := c.places[name]
	if ok {
		return places
	}
	for _, pod := range c.objects.Pods {
		if port, takes := c.takes(pod, c.providers[name]); takes {
			places = append(places, place{pod, port})
		}
	}
	c.places[name] = places
	return places
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

// questionPath is that of all questions to a provider; empty if each has its own,
// that of the request which it is about.
func questionPath(p *model.Provider) string {
	if p.Protocol == model.ProviderGRPC {
		return "/envoy.service.auth.v3.Authorization/Check"
	}
	return ""
}

// coversQuestions reports whether some rule may be about requests to the port with the
// path, of which empty means any.
func coversQuestions(rules []*securityv1beta1.Rule, port, path string) bool {
	about := func(pattern string) bool { return textCovers(pattern, path) }
	return slices.ContainsFunc(rules, func(rule *securityv1beta1.Rule) bool {
		return len(rule.GetTo()) == 0 || slices.ContainsFunc(rule.GetTo(), func(to *securityv1beta1.Rule_To) bool {
			o := to.GetOperation()
			return (len(o.GetPorts()) == 0 || slices.Contains(o.GetPorts(), port)) && !slices.Contains(o.GetNotPorts(), port) &&
				(path == "" || len(o.GetPaths()) == 0 || slices.ContainsFunc(o.GetPaths(), about))
		})
	})
}
