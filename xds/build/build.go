// Package build turns the objects of a cluster into the mesh's model:
// workloads, services and policies, each with what could not be understood.
//
// It is pure: the same objects give the same result, in the same order. Each
// object is translated by a function of its own, which a join then completes
// with what other objects say of it. What does not belong here: where objects
// come from (xds/source) and how the result travels (xds/server).
package build

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Settings are the same for the whole mesh.
type Settings struct {
	Cluster       string // name of the cluster, part of each workload's UID; "" means "Kubernetes"
	Domain        string // of services' names; "" means "cluster.local"
	TrustDomain   string // "" means model.DefaultTrustDomain
	RootNamespace string // "" means DefaultRootNamespace
	Skips         model.SkipSettings
}

// Objects are what the mesh is built from. Namespaced objects have their
// namespace set, and pods their UID.
type Objects struct {
	Namespaces            []*corev1.Namespace
	Nodes                 []*corev1.Node
	Pods                  []*corev1.Pod
	Services              []*corev1.Service
	EndpointSlices        []*discoveryv1.EndpointSlice
	AuthorizationPolicies []*securityv1.AuthorizationPolicy
	PeerAuthentications   []*securityv1.PeerAuthentication
}

// Result is the mesh at one moment.
type Result struct {
	Workloads []*model.Workload // by UID
	Services  []*model.Service  // by key
	Policies  []*model.Policy   // by key
	Statuses  []PolicyStatus
	// Problems are parts of other objects that have no effect as written.
	Problems []Problem
	// Identities are those of the enrolled pods that each node, by name,
	// runs or is about to run: what the node may have certificates for.
	Identities map[string]map[model.Identity]bool
}

// Problem is what is wrong with one object.
type Problem struct {
	Kind, Namespace, Name string
	Err                   error
}

func (p Problem) Error() string {
	return fmt.Sprintf("%s %s/%s: %v", p.Kind, p.Namespace, p.Name, p.Err)
}

func (p Problem) Unwrap() error { return p.Err }

// Build translates the objects.
func Build(s Settings, objects Objects) Result {
	s.Cluster = cmp.Or(s.Cluster, "Kubernetes")
	s.Domain = cmp.Or(s.Domain, "cluster.local")
	s.TrustDomain = cmp.Or(s.TrustDomain, model.DefaultTrustDomain)
	b := newBuilder(s, objects)
	b.pods(objects.Pods)
	b.services(objects.Services, objects.EndpointSlices)
	b.policies(objects)
	return b.finish()
}

// builder joins what the objects say.
type builder struct {
	settings   Settings
	namespaces map[string]*corev1.Namespace
	nodes      map[string]model.Locality
	podList    []*podEntry // in the order of the objects
	podByName  map[objectName]*podEntry
	podByIP    map[string]*podEntry
	foreign    map[string]*model.Workload // endpoints that are no pods, by UID
	result     Result
}

type objectName struct{ namespace, name string }

// podEntry is a pod and the workload that it becomes.
type podEntry struct {
	pod      *corev1.Pod
	workload *model.Workload
}

func newBuilder(s Settings, objects Objects) *builder {
	b := &builder{
		settings:   s,
		namespaces: make(map[string]*corev1.Namespace, len(objects.Namespaces)),
		nodes:      make(map[string]model.Locality, len(objects.Nodes)),
		podByName:  make(map[objectName]*podEntry, len(objects.Pods)),
		podByIP:    make(map[string]*podEntry, len(objects.Pods)),
		foreign:    map[string]*model.Workload{},
		result:     Result{Identities: map[string]map[model.Identity]bool{}},
	}
	for _, ns := range objects.Namespaces {
		b.namespaces[ns.Name] = ns
	}
	for _, node := range objects.Nodes {
		b.nodes[node.Name] = locality(node.Labels)
	}
	return b
}

func (b *builder) problem(kind, namespace, name string, errs ...error) {
	for _, err := range errs {
		b.result.Problems = append(b.result.Problems, Problem{kind, namespace, name, err})
	}
}

func (b *builder) pods(pods []*corev1.Pod) {
	for _, pod := range pods {
		if finished(pod) {
			continue
		}
		ns := b.namespaces[pod.Namespace]
		w, errs := podWorkload(b.settings, pod, ns, b.nodes[pod.Spec.NodeName])
		b.problem("Pod", pod.Namespace, pod.Name, errs...)
		if inMesh(pod, ns) && pod.Spec.NodeName != "" {
			b.permit(pod.Spec.NodeName, w.Identity())
		}
		if len(w.Addresses) == 0 {
			continue // not running yet
		}
		e := &podEntry{pod, w}
		b.podList = append(b.podList, e)
		b.podByName[objectName{pod.Namespace, pod.Name}] = e
		for _, a := range w.Addresses {
			if !w.HostNetwork {
				b.podByIP[a.String()] = e
			}
		}
	}
}

func (b *builder) permit(node string, id model.Identity) {
	if b.result.Identities[node] == nil {
		b.result.Identities[node] = map[model.Identity]bool{}
	}
	b.result.Identities[node][id] = true
}

func (b *builder) policies(objects Objects) {
	in := PolicyInput{
		RootNamespace:         b.settings.RootNamespace,
		AuthorizationPolicies: objects.AuthorizationPolicies,
		PeerAuthentications:   objects.PeerAuthentications,
		Workloads:             make([]PolicyTarget, 0, len(b.podList)),
	}
	for _, e := range b.podList {
		in.Workloads = append(in.Workloads, PolicyTarget{
			UID: e.workload.UID, Namespace: e.workload.Namespace, Labels: e.pod.Labels,
			SkipInbound: e.workload.SkipInbound, Uncaptured: e.workload.Protocol != model.ProtocolHBONE,
		})
	}
	policies := Policies(in)
	for _, e := range b.podList {
		e.workload.Policies = policies.Attached[e.workload.UID]
		e.workload.Labels = policies.Labels(e.pod.Labels)
	}
	b.result.Policies, b.result.Statuses = policies.Policies, policies.Statuses
}

func (b *builder) finish() Result {
	r := b.result
	for _, e := range b.podList {
		r.Workloads = append(r.Workloads, e.workload)
	}
	for _, w := range b.foreign {
		r.Workloads = append(r.Workloads, w)
	}
	slices.SortFunc(r.Workloads, func(x, y *model.Workload) int { return strings.Compare(x.UID, y.UID) })
	slices.SortFunc(r.Services, func(x, y *model.Service) int { return strings.Compare(x.Key(), y.Key()) })
	slices.SortStableFunc(r.Problems, func(x, y Problem) int {
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
	return r
}
