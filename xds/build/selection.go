package build

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/xds/kinds"
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

	services map[objectName]*corev1.Service
	targeted map[objectName]bool // Services that policies target
	byObject bool                // some policy targets pods, or whose they are
	// numbers are those of ports that pods call by a name, each with how many
	// do; named are the names that policies use.
	numbers map[objectName]map[uint16]int
	named   map[objectName]bool

	revoked map[objectKey]*kinds.RevokedIdentity
	now     time.Time // of the last Advance

	providers map[string]*model.Provider
	store     *model.LimitStore

	forwarding model.Forwarding
	domains    trustDomains

	keySets map[string]string
}

type selectedKey struct{ namespace, labels string }

// maxSelected bounds what is remembered.
const maxSelected = 1 << 16

func newPolicySet(s Settings) policySet {
	domains := append(trustDomains{s.TrustDomain}, s.TrustDomainAliases...)
	s.Forwarding.Callers = domains.expand(s.Forwarding.Callers)
	return policySet{
		root: s.RootNamespace, keySets: s.KeySets, providers: s.Providers, store: s.LimitStore, forwarding: s.Forwarding, domains: domains,
		objects: map[objectKey]metav1.Object{}, selected: map[selectedKey][]string{}, services: map[objectName]*corev1.Service{},
		numbers: map[objectName]map[uint16]int{},
	}
}

// add puts a policy into the list of its kind.
func (in *PolicyInput) add(o metav1.Object) {
	switch o := o.(type) {
	case *securityv1.AuthorizationPolicy:
		in.AuthorizationPolicies = append(in.AuthorizationPolicies, o)
	case *securityv1.PeerAuthentication:
		in.PeerAuthentications = append(in.PeerAuthentications, o)
	case *securityv1.RequestAuthentication:
		in.RequestAuthentications = append(in.RequestAuthentications, o)
	case *kinds.RateLimit:
		in.RateLimits = append(in.RateLimits, o)
	case *kinds.HTTPLocalRateLimitPolicy:
		in.LinkerdRateLimits = append(in.LinkerdRateLimits, o)
	case *kinds.Server:
		in.Servers = append(in.Servers, o)
	case *kinds.RevokedIdentity:
		in.RevokedIdentities = append(in.RevokedIdentities, o)
	}
}

// looksAt are the keys of the labels that an object selects by, and what it
// targets instead.
func looksAt(o metav1.Object) (keys []string, refs []*typev1beta1.PolicyTargetReference) {
	switch o := o.(type) {
	case *securityv1.AuthorizationPolicy:
		return selectorKeys(istioSelector(o.Spec.Selector)), append(slices.Clip(o.Spec.TargetRefs), o.Spec.TargetRef)
	case *securityv1.PeerAuthentication:
		return selectorKeys(istioSelector(o.Spec.Selector)), nil
	case *securityv1.RequestAuthentication:
		return selectorKeys(istioSelector(o.Spec.Selector)), append(slices.Clip(o.Spec.TargetRefs), o.Spec.TargetRef)
	case *kinds.RateLimit:
		return selectorKeys(labelSelector(o.Spec.Selector, &PolicyStatus{})), []*typev1beta1.PolicyTargetReference{o.Spec.TargetRef.Proto()}
	case *kinds.Server:
		return selectorKeys(labelSelector(o.Spec.PodSelector, &PolicyStatus{})), nil
	}
	return nil, nil
}

// setTarget notes a Service. Policies are translated anew if one in its
// namespace targets it.
func (m *Mesh) setTarget(name objectName, svc *corev1.Service) {
	if m.policies.services[name] = svc; svc == nil {
		delete(m.policies.services, name)
	}
	if m.policies.targeted[name] {
		m.stale.namespace[name.namespace] = true
	}
}

// SetKeySets takes the key sets that were fetched, by [KeySource.Name], and
// returns what they change in the mesh.
func (m *Mesh) SetKeySets(sets map[string]string) model.Update {
	m.policies.keySets = sets
	return m.again(func() {
		for key := range m.policies.objects {
			if key.kind == "RequestAuthentication" {
				m.stale.namespace[key.namespace] = true
			}
		}
	})
}

// KeySources are where the key sets of issuers are to be fetched, by name.
func (m *Mesh) KeySources() []KeySource { return m.policies.result.KeySources }

func (m *Mesh) setPolicy(o metav1.Object, gone bool) {
	key := keyOf(o)
	if m.policies.objects[key] = o; gone {
		delete(m.policies.objects, key)
	}
	if r, ok := o.(*kinds.RevokedIdentity); ok {
		m.policies.setRevoked(key, unless(gone, r))
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
	p.byNamespace, p.targeted, p.byObject, p.named = map[string][]metav1.Object{}, map[objectName]bool{}, false, map[objectName]bool{}
	keys := map[string]bool{}
	for _, o := range p.objects {
		p.byNamespace[o.GetNamespace()] = append(p.byNamespace[o.GetNamespace()], o)
		labels, refs := looksAt(o)
		for _, key := range labels {
			keys[key] = true
		}
		var names []objectName
		for _, ref := range refs {
			name := objectName{o.GetNamespace(), ref.GetName()}
			p.lookAtTarget(name, ref, keys)
			names = append(names, name)
		}
		p.nameTargets(o, names)
	}
	for _, list := range p.byNamespace {
		slices.SortFunc(list, func(x, y metav1.Object) int {
			return cmp.Or(strings.Compare(kindOf(x), kindOf(y)), strings.Compare(x.GetName(), y.GetName()))
		})
	}
	p.keys = slices.Sorted(maps.Keys(keys))
}

// lookAtTarget: a Service selects by labels, too.
func (p *policySet) lookAtTarget(name objectName, ref *typev1beta1.PolicyTargetReference, keys map[string]bool) {
	switch ref.GetKind() {
	case "":
	case "Service":
		p.targeted[name] = true
		if svc := p.services[name]; svc != nil {
			for key := range svc.Spec.Selector {
				keys[key] = true
			}
		}
	default:
		p.byObject = true
	}
}

// input are the policies of some namespaces.
func (p *policySet) input(namespaces ...string) PolicyInput {
	in := PolicyInput{RootNamespace: p.root, Providers: p.providers, Store: p.store, KeySets: p.keySets, Forwarding: p.forwarding, TrustDomains: p.domains, PortNumbers: p.portNumbers()}
	for name := range p.targeted {
		if svc := p.services[name]; svc != nil {
			in.Services = append(in.Services, svc)
		}
	}
	for _, namespace := range namespaces {
		for _, o := range p.byNamespace[namespace] {
			in.add(o)
		}
	}
	in.Now = p.now
	return in
}

// attached are the policies that select a workload by its labels, or target it.
// Others than those of its namespace and the root namespace never do.
func (p *policySet) attached(w PolicyTarget) []string {
	if len(p.objects) == 0 {
		return nil
	}
	namespace := w.Namespace
	key := selectedKey{namespace, p.project(w.Labels)}
	if p.byObject {
		key.labels += "\n" + w.Name + "\n" + w.OwnerKind + "/" + w.OwnerName
	}
	if len(p.revoked) > 0 {
		key.labels += "\n" + w.Identity.ServiceAccount
	}
	keys, ok := p.selected[key]
	if !ok {
		in := p.input(namespace)
		if namespace != p.root {
			in = p.input(p.root, namespace)
		}
		in.Workloads = []PolicyTarget{w}
		result := Policies(in)
		keys = result.Attached[w.UID]
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

// Objects are those that policies are about, and the policies.
func (m *Mesh) Objects() *Objects {
	o := &Objects{}
	for _, e := range m.pods {
		if e.pod != nil {
			o.Pods = append(o.Pods, e.pod)
		}
	}
	for _, s := range m.services {
		if s.object != nil {
			o.Services = append(o.Services, s.object)
		}
	}
	for _, object := range m.policies.objects {
		switch p := object.(type) {
		case *securityv1.AuthorizationPolicy:
			o.AuthorizationPolicies = append(o.AuthorizationPolicies, p)
		case *securityv1.PeerAuthentication:
			o.PeerAuthentications = append(o.PeerAuthentications, p)
		case *securityv1.RequestAuthentication:
			o.RequestAuthentications = append(o.RequestAuthentications, p)
		}
	}
	byName(o.Pods)
	byName(o.Services)
	byName(o.AuthorizationPolicies)
	byName(o.PeerAuthentications)
	byName(o.RequestAuthentications)
	return o
}

func byName[T metav1.Object](list []T) {
	slices.SortFunc(list, func(x, y T) int { return nameOf(x).compare(nameOf(y)) })
}

// Settings are what the mesh was made with.
func (m *Mesh) Settings() Settings { return m.settings }

func policyTarget(pod *corev1.Pod, w *model.Workload) PolicyTarget {
	t := PolicyTarget{
		UID: w.UID, Namespace: w.Namespace, Name: pod.Name, Identity: w.Identity(), Labels: pod.Labels,
		Ports: map[uint16]model.AppProtocol{}, SkipInbound: w.SkipInbound, Uncaptured: w.Protocol != model.ProtocolHBONE,
	}
	t.OwnerKind, t.OwnerName = controllerOf(pod)
	for _, ports := range w.Services {
		for _, p := range ports {
			if before, ok := t.Ports[p.Target]; ok && before != p.AppProtocol {
				p.AppProtocol = model.AppUnknown
			}
			t.Ports[p.Target] = p.AppProtocol
		}
	}
	return t
}

// Statuses says of each policy whether it is enforced, and where not; by
// kind, namespace and name. It goes through all workloads if anything has
// changed since the last call.
func (m *Mesh) Statuses() []PolicyStatus {
	if m.statuses == nil {
		in := m.policies.input(slices.Sorted(maps.Keys(m.policies.byNamespace))...)
		for _, e := range m.pods {
			if w := e.workload; w != nil {
				in.Workloads = append(in.Workloads, policyTarget(e.pod, w))
			}
		}
		slices.SortFunc(in.Workloads, func(x, y PolicyTarget) int { return strings.Compare(x.UID, y.UID) })
		result := Policies(in)
		m.statuses = append(make([]PolicyStatus, 0, len(result.Statuses)+len(m.bypasses)), result.Statuses...)
		m.statuses = append(m.statuses, m.bypassStatuses()...)
		sortStatuses(m.statuses)
	}
	return m.statuses
}
