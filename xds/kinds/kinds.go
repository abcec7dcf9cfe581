// Package kinds holds the kinds of Kubernetes objects that no module has Go
// types for: our RateLimit, what users of Linkerd have in its place, and our
// RevokedIdentity.
//
// Decoding is strict, so that no part of an object is passed over. What does not
// belong here: what an object amounts to (xds/build).
package kinds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	securityv1beta1 "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The API groups and versions of the kinds.
const (
	RateLimitVersion        = "policy.tacit.mesh/v1alpha1"
	RevokedIdentityVersion  = "policy.tacit.mesh/v1alpha1"
	LinkerdRateLimitVersion = "policy.linkerd.io/v1alpha1"
)

// ServerVersions are those of Linkerd's Server.
func ServerVersions() []string {
	return []string{"policy.linkerd.io/v1beta3", "policy.linkerd.io/v1beta2", "policy.linkerd.io/v1beta1"}
}

// RateLimit bounds what workloads are asked to do.
type RateLimit struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              RateLimitSpec `json:"spec"`
	Status            any           `json:"status,omitempty"`
}

// RateLimitSpec says which workloads: those of one of the two, or, with
// neither, all of the namespace, or from the root namespace of the mesh.
type RateLimitSpec struct {
	Selector  *metav1.LabelSelector `json:"selector,omitempty"`
	TargetRef *TargetRef            `json:"targetRef,omitempty"`
	// Shared counts over all nodes, in the store of the mesh's configuration.
	Shared bool    `json:"shared,omitempty"`
	Limits []Limit `json:"limits"`
}

// TargetRef names an object.
type TargetRef struct {
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

// Proto is Istio's form of the same.
func (r *TargetRef) Proto() *typev1beta1.PolicyTargetReference {
	if r == nil {
		return nil
	}
	return &typev1beta1.PolicyTargetReference{Group: r.Group, Kind: r.Kind, Name: r.Name}
}

// Limit bounds what any of its rules matches; without rules, everything. One
// of Requests, Connections and Bytes is given.
type Limit struct {
	Rules       []Rule          `json:"rules,omitempty"`
	Requests    uint64          `json:"requests,omitempty"`
	Connections uint64          `json:"connections,omitempty"`
	Bytes       uint64          `json:"bytes,omitempty"`
	Interval    metav1.Duration `json:"interval"`
	Burst       uint64          `json:"burst,omitempty"` // 0: as much as in an interval
	Per         *Per            `json:"per,omitempty"`   // nil: all together
}

// Per is what counts are kept apart by; one of its fields is given.
type Per struct {
	Identity bool   `json:"identity,omitempty"`
	Header   string `json:"header,omitempty"`
	Claim    string `json:"claim,omitempty"` // "a.b" for a nested one
}

// Rule is one of an AuthorizationPolicy.
type Rule struct{ *securityv1beta1.Rule }

// UnmarshalJSON refuses unknown fields.
func (r *Rule) UnmarshalJSON(text []byte) error {
	r.Rule = &securityv1beta1.Rule{}
	return protojson.Unmarshal(text, r.Rule)
}

// MarshalJSON is the inverse.
func (r Rule) MarshalJSON() ([]byte, error) { return protojson.Marshal(r.Rule) }

// HTTPLocalRateLimitPolicy is Linkerd's.
type HTTPLocalRateLimitPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              HTTPLocalRateLimitPolicySpec `json:"spec"`
	Status            any                          `json:"status,omitempty"`
}

// HTTPLocalRateLimitPolicySpec targets a Server.
type HTTPLocalRateLimitPolicySpec struct {
	TargetRef TargetRef  `json:"targetRef"`
	Total     *PerSecond `json:"total,omitempty"`
	Identity  *PerSecond `json:"identity,omitempty"`
	Overrides []Override `json:"overrides,omitempty"`
}

// PerSecond is an amount of requests.
type PerSecond struct {
	RequestsPerSecond uint64 `json:"requestsPerSecond"`
}

// Override is the amount for each of some clients.
type Override struct {
	PerSecond  `json:",inline"`
	ClientRefs []ClientRef `json:"clientRefs"`
}

// ClientRef names a ServiceAccount, by default of the policy's namespace.
type ClientRef struct {
	Group     string `json:"group,omitempty"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

// Server is Linkerd's name for a port of some pods. Only these two fields have
// a meaning here.
type Server struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ServerSpec `json:"spec"`
}

// ServerSpec selects pods and one of their ports.
type ServerSpec struct {
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	Port        intstr.IntOrString    `json:"port"`
}

// Decode reads an object of one of these kinds, but for Server with unknown
// fields as errors.
func Decode[T any](text []byte) (*T, error) {
	out := new(T)
	d := json.NewDecoder(bytes.NewReader(text))
	if _, lenient := any(out).(*Server); !lenient {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(out); err != nil {
		return nil, err
	}
	return out, nil
}

// Check says what is wrong with a limit as it is written, whatever else there
// is.
func (l *Limit) Check() error {
	given := 0
	for _, amount := range [...]uint64{l.Requests, l.Connections, l.Bytes} {
		if amount > 0 {
			given++
		}
	}
	var errs []error
	if given != 1 {
		errs = append(errs, errors.New("one of requests, connections and bytes is to be given, above 0"))
	}
	if l.Interval.Duration < 1e6 {
		errs = append(errs, fmt.Errorf("interval: %v: want a duration of at least 1ms, such as 1s", l.Interval.Duration))
	}
	if p := l.Per; p != nil {
		given := 0
		for _, is := range [...]bool{p.Identity, p.Header != "", p.Claim != ""} {
			if is {
				given++
			}
		}
		if given != 1 {
			errs = append(errs, errors.New("per: one of identity, header and claim is to be given"))
		}
		if l.Requests == 0 && !p.Identity {
			errs = append(errs, errors.New("per: headers and claims are of requests"))
		}
	}
	return errors.Join(errs...)
}
