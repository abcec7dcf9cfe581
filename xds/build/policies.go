package build

import (
	"cmp"
	"fmt"
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

// DefaultRootNamespace is the namespace whose policies without a selector
// cover the whole mesh.
const DefaultRootNamespace = "tacit-system"

// PolicyInput is everything that the translation of policies depends on.
type PolicyInput struct {
	RootNamespace          string // "" means DefaultRootNamespace
	AuthorizationPolicies  []*securityv1.AuthorizationPolicy
	PeerAuthentications    []*securityv1.PeerAuthentication
	RequestAuthentications []*securityv1.RequestAuthentication
	RateLimits             []*kinds.RateLimit
	LinkerdRateLimits      []*kinds.HTTPLocalRateLimitPolicy
	Servers                []*kinds.Server   // that these target
	Services               []*corev1.Service // that policies target
	RevokedIdentities      []*kinds.RevokedIdentity
	Now                    time.Time // decides which of them are over
	// PortNumbers are those that pods of a namespace give the name of a port.
	PortNumbers map[string]map[string][]uint16
	// KeySets are those that were fetched, by [KeySource.Name].
	KeySets   map[string]string
	Providers map[string]*model.Provider
	Store     *model.LimitStore // for shared limits; nil if there is none
	// Forwarding tells the original clients' addresses.
	Forwarding model.Forwarding
	// TrustDomains are the names of the own trust domain.
	TrustDomains []string
	Workloads    []PolicyTarget
}

// PolicyTarget is a workload as far as policies care.
type PolicyTarget struct {
	UID                  string
	Namespace, Name      string
	Identity             model.Identity
	OwnerKind, OwnerName string            // of what made the pod; empty if nothing did
	Labels               map[string]string // all labels of the pod
	// Ports are those that services lead to, with what they declare.
	Ports map[uint16]model.AppProtocol
	// SkipInbound are ports that bypass the proxy, so that no policy is
	// enforced there; Uncaptured says the same of every port.
	SkipInbound model.PortSet
	Uncaptured  bool
}

// PolicyResult is what the policies amount to.
type PolicyResult struct {
	Policies []*model.Policy // by key
	// Attached maps a workload's UID to the sorted keys of the policies that
	// select it by labels (Workload.Policies).
	Attached map[string][]string
	// LabelKeys are the keys that conditions on source.labels[KEY] name, sorted.
	LabelKeys  []string
	KeySources []KeySource    // by name
	Statuses   []PolicyStatus // by kind, namespace and name
}

// Labels picks the labels of a pod that policies name, for Workload.Labels. A
// key that the pod lacks is there with an empty value: to a proxy a missing
// key means that it has not been told, which it takes for the worst.
func (r *PolicyResult) Labels(pod map[string]string) map[string]string {
	if len(r.LabelKeys) == 0 {
		return nil
	}
	out := make(map[string]string, len(r.LabelKeys))
	for _, key := range r.LabelKeys {
		out[key] = pod[key]
	}
	return out
}

// PolicyStatus says whether one object is enforced.
type PolicyStatus struct {
	Kind, Namespace, Name string
	Generation            int64 // of the object that this speaks of
	// Enforced says that the object takes part in decisions.
	Enforced bool
	// Layer is where it does: "L4", or "L7" if it needs requests to be read.
	Layer string
	// Ports are those of the workloads covered that services lead to, each as
	// PORT/LAYER, or PORT/L4-L7 where it depends on the workload.
	Ports []string
	// Messages say what is not enforced as written, where and why; none
	// means that all of it is.
	Messages []string
	// Findings are parts that do something else than was probably meant.
	Findings []string
}

// Policy is the key under which the object travels, if it does under one of its
// own.
func (s *PolicyStatus) Policy() string {
	switch s.Kind {
	case "AuthorizationPolicy":
		return s.Namespace + "/" + s.Name
	case "RequestAuthentication":
		return s.Namespace + "/" + authenticationPrefix + s.Name
	case "RateLimit":
		return s.Namespace + "/" + limitPrefix + s.Name
	case "HTTPLocalRateLimitPolicy":
		return s.Namespace + "/" + linkerdLimitPrefix + s.Name
	case "RevokedIdentity":
		return s.Namespace + "/" + model.RevokedIdentityOf + s.Name
	}
	return ""
}

func newStatus(kind string, meta *metav1.ObjectMeta) PolicyStatus {
	return PolicyStatus{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, Generation: meta.Generation, Layer: layer4}
}

func (s *PolicyStatus) say(format string, args ...any) {
	s.Messages = append(s.Messages, fmt.Sprintf(format, args...))
}

// Policies translates Istio's kinds of policies and limits of rates, and says of
// each object whether it is enforced. A value that cannot be understood makes its match unknown, which a
// DENY policy takes for a match and an ALLOW policy does not.
func Policies(in PolicyInput) PolicyResult {
	b := policyBuilder{
		root:      cmp.Or(in.RootNamespace, DefaultRootNamespace),
		now:       in.Now,
		workloads: in.Workloads,
		providers: in.Providers,
		keySets:   in.KeySets,
		store:     in.Store,

		forwarding: in.Forwarding,
		domains:    in.TrustDomains,

		portNumbers: in.PortNumbers,

		services:  map[objectName]*corev1.Service{},
		attached:  map[string]map[string]struct{}{},
		labelKeys: map[string]struct{}{},
	}
	for _, svc := range in.Services {
		b.services[nameOf(svc)] = svc
	}
	for _, obj := range in.AuthorizationPolicies {
		b.authorization(obj)
	}
	b.peerAuthentications(in.PeerAuthentications)
	for _, obj := range in.RequestAuthentications {
		b.requestAuthentication(obj)
	}
	for _, obj := range in.RateLimits {
		b.rateLimit(obj)
	}
	for _, obj := range in.LinkerdRateLimits {
		b.linkerdRateLimit(obj, in.Servers)
	}
	for _, obj := range in.RevokedIdentities {
		b.revokedIdentity(obj)
	}
	return b.result()
}

type policyBuilder struct {
	root      string
	now       time.Time
	workloads []PolicyTarget
	providers map[string]*model.Provider
	keySets   map[string]string
	store     *model.LimitStore

	forwarding model.Forwarding
	domains    trustDomains

	portNumbers map[string]map[string][]uint16

	services map[objectName]*corev1.Service

	policies   []*model.Policy
	keySources []KeySource
	attached   map[string]map[string]struct{} // UID -> policy keys
	labelKeys  map[string]struct{}
	statuses   []PolicyStatus
}

func (b *policyBuilder) attach(uid, key string) {
	if b.attached[uid] == nil {
		b.attached[uid] = map[string]struct{}{}
	}
	b.attached[uid][key] = struct{}{}
}

func (b *policyBuilder) result() PolicyResult {
	r := PolicyResult{
		Policies:  b.policies,
		Attached:  make(map[string][]string, len(b.attached)),
		LabelKeys: slices.Sorted(maps.Keys(b.labelKeys)),
		Statuses:  b.statuses,
	}
	r.KeySources = patient(b.keySources)
	for uid, keys := range b.attached {
		r.Attached[uid] = slices.Sorted(maps.Keys(keys))
	}
	slices.SortFunc(r.Policies, func(x, y *model.Policy) int { return strings.Compare(x.Key(), y.Key()) })
	sortStatuses(r.Statuses)
	return r
}

func sortStatuses(list []PolicyStatus) {
	slices.SortFunc(list, func(x, y PolicyStatus) int {
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
}

// selects reports whether an object of namespace ns with this selector covers
// the workload.
func (b *policyBuilder) selects(ns string, selector *typev1beta1.WorkloadSelector, w *PolicyTarget) bool {
	if ns != w.Namespace && ns != b.root {
		return false
	}
	for key, value := range selector.GetMatchLabels() {
		if have, ok := w.Labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}
