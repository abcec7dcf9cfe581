package build

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// policySet are the objects that are policies, and what they lead to.
type policySet struct {
	root        string
	objects     map[objectKey]metav1.Object
	byNamespace map[string][]metav1.Object // sorted
	result      PolicyResult               // of all objects, without any workload
	// keys are the labels' keys that selectors name, sorted.
	keys []string
	// selected remembers which policies select the workloads of a namespace
	// that have the same values of those labels.
	selected map[selectedKey][]string
}

type selectedKey struct{ namespace, labels string }

// maxSelected bounds what is remembered.
const maxSelected = 1 << 16

func newPolicySet(root string) policySet {
	return policySet{root: root, objects: map[objectKey]metav1.Object{}, selected: map[selectedKey][]string{}}
}

// add puts a policy into the list of its kind.
func (in *PolicyInput) add(o metav1.Object) {
	switch o := o.(type) {
	case *securityv1.AuthorizationPolicy:
		in.AuthorizationPolicies = append(in.AuthorizationPolicies, o)
	case *securityv1.PeerAuthentication:
		in.PeerAuthentications = append(in.PeerAuthentications, o)
	}
}

func selectorOf(o metav1.Object) *typev1beta1.WorkloadSelector {
	switch o := o.(type) {
	case *securityv1.AuthorizationPolicy:
		return o.Spec.Selector
	case *securityv1.PeerAuthentication:
		return o.Spec.Selector
	}
	return nil
}

func (m *Mesh) setPolicy(o metav1.Object, gone bool) {
	key := keyOf(o)
	if m.policies.objects[key] = o; gone {
		delete(m.policies.objects, key)
	}
	m.stale.namespace[o.GetNamespace()] = true
}

// derivePolicies translates the policies anew if any has changed, and has the
// pods derived again that one of them may select, or whose labels are now
// named by another set of policies.
func (m *Mesh) derivePolicies() {
	changed := m.stale.namespace
	if len(changed) == 0 {
		return
	}
	p := &m.policies
	before := p.result
	p.index()
	p.result = Policies(p.input(slices.Sorted(maps.Keys(p.byNamespace))...))
	p.result.Attached, p.result.Statuses = nil, nil
	m.statuses = nil

	u := &m.stale.update
	u.Policies, u.RemovedPolicies = changes(before.Policies, p.result.Policies, policyKey)
	m.counts.Policies = len(p.result.Policies)
	if changed[p.root] || !slices.Equal(before.LabelKeys, p.result.LabelKeys) {
		clear(p.selected)
		for _, e := range m.pods {
			m.stale.joins[e] = true
		}
		return
	}
	maps.DeleteFunc(p.selected, func(k selectedKey, _ []string) bool { return changed[k.namespace] })
	for namespace := range changed {
		maps.Copy(m.stale.joins, m.podsIn[namespace])
	}
}

// index sorts the objects.
func (p *policySet) index() {
	p.byNamespace = map[string][]metav1.Object{}
	keys := map[string]bool{}
	for _, o := range p.objects {
		p.byNamespace[o.GetNamespace()] = append(p.byNamespace[o.GetNamespace()], o)
		for key := range selectorOf(o).GetMatchLabels() {
			keys[key] = true
		}
	}
	for _, list := range p.byNamespace {
		slices.SortFunc(list, func(x, y metav1.Object) int {
			return cmp.Or(strings.Compare(kindOf(x), kindOf(y)), strings.Compare(x.GetName(), y.GetName()))
		})
	}
	p.keys = slices.Sorted(maps.Keys(keys))
}

// input are the policies of some namespaces.
func (p *policySet) input(namespaces ...string) PolicyInput {
	in := PolicyInput{RootNamespace: p.root}
	for _, namespace := range namespaces {
		for _, o := range p.byNamespace[namespace] {
			in.add(o)
		}
	}
	return in
}

// attached are the policies that select a workload of the namespace by these
// labels. Others than those of its namespace and the root namespace never do.
func (p *policySet) attached(namespace string, labels map[string]string) []string {
	if len(p.objects) == 0 {
		return nil
	}
	key := selectedKey{namespace, p.project(labels)}
	keys, ok := p.selected[key]
	if !ok {
		in := p.input(namespace)
		if namespace != p.root {
			in = p.input(p.root, namespace)
		}
		const uid = "any"
		in.Workloads = []PolicyTarget{{UID: uid, Namespace: namespace, Labels: labels}}
		result := Policies(in)
		keys = result.Attached[uid]
		if len(p.selected) >= maxSelected {
			clear(p.selected)
		}
		p.selected[key] = keys
	}
	return keys
}

// project writes down the labels that selectors name, as far as they are set.
func (p *policySet) project(labels map[string]string) string {
	var out []byte
	for _, key := range p.keys {
		if value, ok := labels[key]; ok {
			out = append(append(append(append(out, key...), '='), value...), ',')
		}
	}
	return string(out)
}

// Statuses says of each policy whether it is enforced, and where not; by
// kind, namespace and name. It goes through all workloads if anything has
// changed since the last call.
func (m *Mesh) Statuses() []PolicyStatus {
	if m.statuses == nil {
		in := m.policies.input(slices.Sorted(maps.Keys(m.policies.byNamespace))...)
		for _, e := range m.pods {
			if w := e.workload; w != nil {
				in.Workloads = append(in.Workloads, PolicyTarget{
					UID: w.UID, Namespace: w.Namespace, Labels: e.pod.Labels,
					SkipInbound: w.SkipInbound, Uncaptured: w.Protocol != model.ProtocolHBONE,
				})
			}
		}
		slices.SortFunc(in.Workloads, func(x, y PolicyTarget) int { return strings.Compare(x.UID, y.UID) })
		result := Policies(in)
		m.statuses = append(make([]PolicyStatus, 0, len(result.Statuses)), result.Statuses...)
	}
	return m.statuses
}
