// Package build turns the objects of a cluster into the mesh's model:
// workloads, services and policies, each with what could not be understood.
//
// It is pure: the same objects give the same result, in whatever order they
// came. Each object is translated by a function of its own; a [Mesh] joins what
// the objects say of each other, and does so again, when some change, for what
// depends on them alone. What does not belong here: where objects come from
// (xds/source) and how the result travels (xds/server).
package build

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Settings are the same for the whole mesh.
type Settings struct {
	Cluster     string // name of the cluster, part of each workload's UID; "" means "Kubernetes"
	Domain      string // of services' names; "" means "cluster.local"
	TrustDomain string // "" means model.DefaultTrustDomain
	// TrustDomainAliases are other names of the same trust domain: policies
	// that name one mean all, and peers may prove an identity of any.
	TrustDomainAliases []string

	RootNamespace string // "" means DefaultRootNamespace
	Skips         model.SkipSettings
	// Accounts says that ServiceAccounts are among the objects, so that one
	// without an object is gone, and its identity nobody's.
	Accounts bool

	Paths      model.PathNormalization    // of requests to any workload
	Providers  map[string]*model.Provider // by name, for policies with the action CUSTOM
	LimitStore *model.LimitStore          // for limits that are shared; nil if there is none
	Forwarding model.Forwarding           // tells the original clients' addresses
	MaxBypass  time.Duration              // of a Bypass that is accepted; 0 means bypass.DefaultMax
	KeySets    map[string]string          // those fetched so far, by KeySource.Name
}

func (s Settings) withDefaults() Settings {
	s.Cluster = cmp.Or(s.Cluster, "Kubernetes")
	s.Domain = cmp.Or(s.Domain, "cluster.local")
	s.TrustDomain = cmp.Or(s.TrustDomain, model.DefaultTrustDomain)
	s.TrustDomainAliases = slices.DeleteFunc(slices.Clone(s.TrustDomainAliases), func(name string) bool { return name == s.TrustDomain })
	s.RootNamespace = cmp.Or(s.RootNamespace, DefaultRootNamespace)
	s.MaxBypass = cmp.Or(s.MaxBypass, bypass.DefaultMax)
	return s
}

// Objects are what the mesh is built from. Namespaced objects have their
// namespace set, and pods their UID.
type Objects struct {
	Namespaces             []*corev1.Namespace
	Nodes                  []*corev1.Node
	ServiceAccounts        []*corev1.ServiceAccount
	Pods                   []*corev1.Pod
	Services               []*corev1.Service
	EndpointSlices         []*discoveryv1.EndpointSlice
	AuthorizationPolicies  []*securityv1.AuthorizationPolicy
	PeerAuthentications    []*securityv1.PeerAuthentication
	RequestAuthentications []*securityv1.RequestAuthentication
	RateLimits             []*kinds.RateLimit
	LinkerdRateLimits      []*kinds.HTTPLocalRateLimitPolicy
	Servers                []*kinds.Server
	RevokedIdentities      []*kinds.RevokedIdentity
	Bypasses               []*bypass.Bypass
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
	m := New(s)
	m.Apply(objects.Since(nil))
	return m.Result()
}

// all are the objects of all kinds.
func (o *Objects) all() []metav1.Object {
	var out []metav1.Object
	out = appendObjects(out, o.Namespaces)
	out = appendObjects(out, o.Nodes)
	out = appendObjects(out, o.ServiceAccounts)
	out = appendObjects(out, o.Pods)
	out = appendObjects(out, o.Services)
	out = appendObjects(out, o.EndpointSlices)
	out = appendObjects(out, o.AuthorizationPolicies)
	out = appendObjects(out, o.PeerAuthentications)
	out = appendObjects(out, o.RequestAuthentications)
	out = appendObjects(out, o.RateLimits)
	out = appendObjects(out, o.LinkerdRateLimits)
	out = appendObjects(out, o.RevokedIdentities)
	out = appendObjects(out, o.Bypasses)
	return appendObjects(out, o.Servers)
}

func appendObjects[T metav1.Object](out []metav1.Object, objects []T) []metav1.Object {
	for _, o := range objects {
		out = append(out, o)
	}
	return out
}

// Changes are objects that came, changed or went. Of those that went nothing
// but type, namespace and name is read.
type Changes struct {
	Set, Gone []metav1.Object
}

// Since are the changes that lead from earlier objects to these; from nil, all
// of them. An object that is the same pointer has not changed.
func (o *Objects) Since(before *Objects) Changes {
	if before == nil {
		return Changes{Set: o.all()}
	}
	had := map[objectKey]metav1.Object{}
	for _, object := range before.all() {
		had[keyOf(object)] = object
	}
	var c Changes
	for _, object := range o.all() {
		key := keyOf(object)
		if had[key] != object {
			c.Set = append(c.Set, object)
		}
		delete(had, key)
	}
	for _, object := range before.all() {
		if had[keyOf(object)] == object {
			c.Gone = append(c.Gone, object)
		}
	}
	return c
}

func sortProblems(list []Problem) {
	slices.SortStableFunc(list, func(x, y Problem) int {
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
}
