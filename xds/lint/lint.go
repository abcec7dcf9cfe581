// Package lint finds policies that mean something else than their authors
// probably wanted: valid, enforced, and wrong.
//
// What does not belong here: what cannot be understood or enforced, which
// xds/build says of each policy.
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Finding is one doubtful part of an object.
type Finding struct {
	Kind, Namespace, Name string
	Field                 string // such as "spec.rules[0].from[0].source.principals"
	Now                   string // what it does as it is
	Meant                 string // what was probably meant
}

// String is the finding in one line.
func (f Finding) String() string {
	return fmt.Sprintf("%s %s/%s: %s: %s; probably meant: %s", f.Kind, f.Namespace, f.Name, f.Field, f.Now, f.Meant)
}

// maxPairs of policies and pods are looked at. Of a mesh with more, what is
// about workloads is left out.
const maxPairs = 2_000_000

// Check goes through all policies, and sorts what it finds. Whatever is about
// workloads is left out where there are none of the namespace.
func Check(o *build.Objects, s build.Settings) []Finding {
	if (len(o.AuthorizationPolicies)+len(o.PeerAuthentications)+len(o.RequestAuthentications))*len(o.Pods) > maxPairs {
		few := *o
		few.Pods, o = nil, &few
	}
	c := checker{objects: o, root: cmp.Or(s.RootNamespace, build.DefaultRootNamespace), providers: s.Providers, places: map[string][]place{}}
	for _, p := range o.AuthorizationPolicies {
		c.begin("AuthorizationPolicy", p.Namespace, p.Name)
		pods := c.selected(p.Namespace, p.Spec.GetSelector().GetMatchLabels(), len(p.Spec.TargetRefs) > 0 || p.Spec.TargetRef != nil)
		c.authorization(p, pods)
		c.provider(p, pods)
	}
	c.circles()
	for _, p := range o.RequestAuthentications {
		c.begin("RequestAuthentication", p.Namespace, p.Name)
		c.selected(p.Namespace, p.Spec.GetSelector().GetMatchLabels(), len(p.Spec.TargetRefs) > 0 || p.Spec.TargetRef != nil)
	}
	c.peerAuthentications()
	slices.SortStableFunc(c.found, func(x, y Finding) int {
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name), strings.Compare(x.Field, y.Field))
	})
	return c.found
}

// checker looks at one object after the other.
type checker struct {
	objects   *build.Objects
	root      string
	providers map[string]*model.Provider
	at        Finding            // the object
	places    map[string][]place // of providers
	links     []link
	found     []Finding
}

func (c *checker) begin(kind, namespace, name string) {
	c.at = Finding{Kind: kind, Namespace: namespace, Name: name}
}

func (c *checker) find(field, now, meant string) {
	f := c.at
	f.Field, f.Now, f.Meant = field, now, meant
	c.found = append(c.found, f)
}

// selected are the pods that a policy covers. A selector that selects none of
// several is a finding.
func (c *checker) selected(namespace string, selector map[string]string, elsewhere bool) (pods []*corev1.Pod) {
	if elsewhere {
		return nil
	}
	candidates, wanted := 0, labels.SelectorFromSet(selector)
	for _, pod := range c.objects.Pods {
		if namespace != c.root && pod.Namespace != namespace {
			continue
		}
		candidates++
		if wanted.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	if len(pods) == 0 && candidates > 0 && len(selector) > 0 {
		c.find("spec.selector", "selects none of the "+counted(candidates, "pod")+" there are, so it covers nothing",
			"labels of the pods, not of their Deployment or Service; those there are have "+labelsLike(c.objects.Pods, selector, namespace, c.root))
	}
	return pods
}

func counted(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// labelsLike are the values that pods have for the keys of a selector.
func labelsLike(pods []*corev1.Pod, selector map[string]string, namespace, root string) string {
	values := map[string]bool{}
	for key := range selector {
		for _, pod := range pods {
			if value, ok := pod.Labels[key]; ok && (namespace == root || pod.Namespace == namespace) {
				values[key+"="+value] = true
			}
		}
	}
	var out []string
	for v := range values {
		out = append(out, v)
	}
	if len(out) == 0 {
		return "none of these keys"
	}
	slices.Sort(out)
	return strings.Join(out[:min(len(out), 5)], ", ")
}
