package build

import (
	"cmp"
	"fmt"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Mesh is what a cluster's objects amount to, kept up to date as they change:
// a change costs what depends on it, and the whole is the same as if it had
// been built anew. It is not for concurrent use.
//
// What it says of a pod is derived in two steps: the pod by itself (its
// namespace and node included), then the services that it is a member of and
// the policies that select it. Every object of the cluster is in indices by
// what it refers to, so that a change finds what to derive again.
type Mesh struct {
	settings   Settings
	namespaces map[string]*corev1.Namespace
	nodes      map[string]model.Locality
	accounts   map[objectName]bool

	pods        map[objectName]*podEntry
	podsIn      index[string, *podEntry] // by namespace
	podsOn      index[string, *podEntry] // by node
	podsAt      index[addr, *podEntry]
	permissions map[string]map[model.Identity]int // how many pods of a node have the identity

	services  map[objectName]*serviceEntry
	selecting index[string, *serviceEntry] // without slices, by namespace

	slices      map[objectName]*sliceEntry
	slicesOf    index[objectName, *sliceEntry] // by service
	slicesAbout index[objectName, *sliceEntry] // by pod
	slicesAt    index[addr, *sliceEntry]       // by address of endpoints that name no pod
	slicesOn    index[string, *sliceEntry]     // by node of the same

	bypasses map[objectName]*bypass.Bypass

	policies policySet
	problems map[objectKey][]error
	counts   Counts

	statuses []PolicyStatus // nil while they have to be worked out again
	stale    stale
}

// Counts is how much of everything there is.
type Counts struct{ Workloads, Services, Policies int }

// stale is what one round of changes makes it necessary to derive again.
type stale struct {
	pods      map[*podEntry]bool // by themselves
	joins     map[*podEntry]bool // what other objects say of them
	slices    map[*sliceEntry]bool
	update    model.Update
	namespace map[string]bool // whose policies changed
}

type objectName struct{ namespace, name string }

func (n objectName) compare(other objectName) int {
	return cmp.Or(strings.Compare(n.namespace, other.namespace), strings.Compare(n.name, other.name))
}

type objectKey struct {
	kind string
	objectName
}

func nameOf(o metav1.Object) objectName { return objectName{o.GetNamespace(), o.GetName()} }

func keyOf(o metav1.Object) objectKey { return objectKey{kindOf(o), nameOf(o)} }

func kindOf(o metav1.Object) string {
	switch o.(type) {
	case *corev1.Namespace:
		return "Namespace"
	case *corev1.Node:
		return "Node"
	case *corev1.ServiceAccount:
		return "ServiceAccount"
	case *corev1.Pod:
		return "Pod"
	case *corev1.Service:
		return "Service"
	case *discoveryv1.EndpointSlice:
		return "EndpointSlice"
	case *securityv1.AuthorizationPolicy:
		return "AuthorizationPolicy"
	case *securityv1.PeerAuthentication:
		return "PeerAuthentication"
	case *securityv1.RequestAuthentication:
		return "RequestAuthentication"
	case *kinds.RateLimit:
		return "RateLimit"
	case *kinds.HTTPLocalRateLimitPolicy:
		return "HTTPLocalRateLimitPolicy"
	case *kinds.Server:
		return "Server"
	case *kinds.RevokedIdentity:
		return "RevokedIdentity"
	case *bypass.Bypass:
		return "Bypass"
	}
	panic(fmt.Sprintf("build: objects of type %T are not known", o))
}

// New is the mesh of no objects.
func New(s Settings) *Mesh {
	s = s.withDefaults()
	return &Mesh{
		settings:    s,
		namespaces:  map[string]*corev1.Namespace{},
		nodes:       map[string]model.Locality{},
		accounts:    map[objectName]bool{},
		pods:        map[objectName]*podEntry{},
		podsIn:      index[string, *podEntry]{},
		podsOn:      index[string, *podEntry]{},
		podsAt:      index[addr, *podEntry]{},
		permissions: map[string]map[model.Identity]int{},
		services:    map[objectName]*serviceEntry{},
		selecting:   index[string, *serviceEntry]{},
		slices:      map[objectName]*sliceEntry{},
		slicesOf:    index[objectName, *sliceEntry]{},
		slicesAbout: index[objectName, *sliceEntry]{},
		slicesAt:    index[addr, *sliceEntry]{},
		slicesOn:    index[string, *sliceEntry]{},
		bypasses:    map[objectName]*bypass.Bypass{},
		policies:    newPolicySet(s),
		problems:    map[objectKey][]error{},
	}
}

// Apply takes changes and returns what they change in the mesh. The objects
// must not be written to afterwards.
func (m *Mesh) Apply(c Changes) model.Update {
	return m.again(func() {
		for _, o := range c.Gone {
			m.set(o, true)
		}
		for _, o := range c.Set {
			m.set(o, false)
		}
	})
}

// again derives anew what a change makes stale.
func (m *Mesh) again(change func()) model.Update {
	m.stale = stale{
		pods: map[*podEntry]bool{}, joins: map[*podEntry]bool{}, slices: map[*sliceEntry]bool{}, namespace: map[string]bool{},
		update: model.Update{AddressesComplete: true, PoliciesComplete: true},
	}
	change()
	for e := range m.stale.pods {
		m.derive(e)
	}
	m.derivePolicies()
	for s := range m.stale.slices {
		m.deriveForeign(s)
	}
	for e := range m.stale.joins {
		m.deriveJoin(e)
	}
	u := m.stale.update
	m.stale = stale{}
	sortUpdate(&u)
	return u
}

func (m *Mesh) set(o metav1.Object, gone bool) {
	switch o := o.(type) {
	case *corev1.Namespace:
		m.setNamespace(o.Name, unless(gone, o))
	case *corev1.Node:
		m.setNode(o.Name, unless(gone, o))
	case *corev1.ServiceAccount:
		if m.accounts[nameOf(o)] = true; gone {
			delete(m.accounts, nameOf(o))
		}
	case *corev1.Pod:
		m.setPod(nameOf(o), unless(gone, o))
	case *corev1.Service:
		m.setService(nameOf(o), unless(gone, o))
		m.setTarget(nameOf(o), unless(gone, o))
	case *discoveryv1.EndpointSlice:
		m.setSlice(nameOf(o), unless(gone, o))
	case *bypass.Bypass:
		m.setBypass(nameOf(o), unless(gone, o))
	default:
		m.setPolicy(o, gone)
	}
}

func unless[T any](gone bool, o *T) *T {
	if gone {
		return nil
	}
	return o
}

// problem notes what is wrong with an object now, in place of what was.
func (m *Mesh) problem(kind string, name objectName, errs []error) {
	key := objectKey{kind, name}
	if len(errs) == 0 {
		delete(m.problems, key)
		return
	}
	m.problems[key] = errs
}

// index finds values by a key that they share.
type index[K, V comparable] map[K]map[V]bool

func (x index[K, V]) add(k K, v V) {
	if x[k] == nil {
		x[k] = map[V]bool{}
	}
	x[k][v] = true
}

func (x index[K, V]) remove(k K, v V) {
	if delete(x[k], v); len(x[k]) == 0 {
		delete(x, k)
	}
}
