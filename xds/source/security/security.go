// Package security reads the kinds of policies, Istio's and our own,
// strictly: Istio's own types would pass over fields that they do not know, and
// a policy of which a part is passed over is another policy.
//
// What does not belong here: where the objects come from, and what they mean
// (xds/build).
package security

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	securityv1beta1 "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/xds/kinds"
)

// Group is the API group of Istio's kinds.
const Group = "security.istio.io"

// Kind is one kind of policy.
type Kind struct {
	manifests.Kind
	// Resource is its name in the API's paths.
	Resource string
	// Closed is what stands in for an object that never could be read: it
	// denies whatever the object might have been about.
	Closed func(metav1.ObjectMeta, *typev1beta1.WorkloadSelector) metav1.Object
	// Lenient says that what is not known of the kind allows nothing more: it
	// is not waited for.
	Lenient bool
}

// Group is the kind's API group.
func (k Kind) Group() string {
	group, _, _ := strings.Cut(k.APIVersions[0], "/")
	return group
}

// Versions are the names of those versions of the group that are read, the
// preferred one first.
func (k Kind) Versions() (out []string) {
	for _, v := range k.APIVersions {
		_, version, _ := strings.Cut(v, "/")
		out = append(out, version)
	}
	return out
}

// Kinds are all of them.
func Kinds() []Kind {
	return []Kind{
		kind("AuthorizationPolicy", "authorizationpolicies", decodeAuthorizationPolicy, denyAll),
		kind("PeerAuthentication", "peerauthentications", decodePeerAuthentication, strict),
		kind("RequestAuthentication", "requestauthentications", decodeRequestAuthentication, denyTokens),
		revokedIdentities(),
		bypasses(),
		limits("RateLimit", "ratelimits", decodeOwn[kinds.RateLimit], noLimit, kinds.RateLimitVersion),
		limits("HTTPLocalRateLimitPolicy", "httplocalratelimitpolicies", decodeOwn[kinds.HTTPLocalRateLimitPolicy], noLinkerdLimit, kinds.LinkerdRateLimitVersion),
		limits("Server", "servers", decodeOwn[kinds.Server], noServer, kinds.ServerVersions()...),
	}
}

func kind(name, resource string, decode func(*manifests.Document) (any, error), closed func(metav1.ObjectMeta, *typev1beta1.WorkloadSelector) metav1.Object) Kind {
	k := Kind{Resource: resource, Closed: closed}
	k.Kind.Kind, k.Decode = name, decode
	k.APIVersions = []string{Group + "/v1", Group + "/v1beta1"}
	return k
}

// limits is a kind about limits of rates. One that cannot be read is none:
// limits do not say who may do what.
func limits(name, resource string, decode func(*manifests.Document) (any, error), empty func(metav1.ObjectMeta) metav1.Object, versions ...string) Kind {
	k := Kind{Resource: resource, Lenient: true, Closed: func(meta metav1.ObjectMeta, _ *typev1beta1.WorkloadSelector) metav1.Object { return empty(meta) }}
	k.Kind.Kind, k.Decode, k.APIVersions = name, decode, versions
	return k
}

// revokedIdentities: of one that cannot be read it is not known whom it is
// about, which its status says.
func revokedIdentities() Kind {
	k := Kind{Resource: "revokedidentities", Closed: func(meta metav1.ObjectMeta, _ *typev1beta1.WorkloadSelector) metav1.Object {
		return &kinds.RevokedIdentity{ObjectMeta: meta}
	}}
	k.Kind.Kind, k.Decode, k.APIVersions = "RevokedIdentity", decodeOwn[kinds.RevokedIdentity], []string{kinds.RevokedIdentityVersion}
	return k
}

// bypasses: one that cannot be read bypasses nothing, as one without a reason.
func bypasses() Kind {
	k := Kind{Resource: bypass.Resource, Lenient: true, Closed: func(meta metav1.ObjectMeta, _ *typev1beta1.WorkloadSelector) metav1.Object {
		return &bypass.Bypass{ObjectMeta: meta}
	}}
	k.Kind.Kind, k.Decode, k.APIVersions = "Bypass", decodeOwn[bypass.Bypass], []string{bypass.Version}
	return k
}

func noLimit(meta metav1.ObjectMeta) metav1.Object { return &kinds.RateLimit{ObjectMeta: meta} }

func noLinkerdLimit(meta metav1.ObjectMeta) metav1.Object {
	return &kinds.HTTPLocalRateLimitPolicy{ObjectMeta: meta}
}

func noServer(meta metav1.ObjectMeta) metav1.Object { return &kinds.Server{ObjectMeta: meta} }

func decodeOwn[T any, P interface {
	*T
	metav1.Object
}](d *manifests.Document) (any, error) {
	var text json.RawMessage
	if err := d.Decode("", &text); err != nil {
		return nil, err
	}
	object, err := kinds.Decode[T](text)
	if err != nil {
		return nil, err
	}
	if o := P(object); o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	return object, nil
}

func decodeAuthorizationPolicy(d *manifests.Document) (any, error) {
	p := &securityv1.AuthorizationPolicy{}
	return p, decode(d, &p.ObjectMeta, &p.Spec)
}

func decodePeerAuthentication(d *manifests.Document) (any, error) {
	p := &securityv1.PeerAuthentication{}
	return p, decode(d, &p.ObjectMeta, &p.Spec)
}

func decodeRequestAuthentication(d *manifests.Document) (any, error) {
	p := &securityv1.RequestAuthentication{}
	return p, decode(d, &p.ObjectMeta, &p.Spec)
}

// decode reads an object with a specification of Istio's.
func decode(d *manifests.Document, meta *metav1.ObjectMeta, spec proto.Message) error {
	frame := struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        *metav1.ObjectMeta `json:"metadata"`
		Spec            any                `json:"spec"`
		Status          any                `json:"status"`
	}{Metadata: meta}
	if err := errors.Join(d.Decode("", &frame), d.DecodeProto("spec", spec)); err != nil {
		return err
	}
	if meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault
	}
	return nil
}

func denyAll(meta metav1.ObjectMeta, selector *typev1beta1.WorkloadSelector) metav1.Object {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: meta}
	p.Spec.Selector = selector
	p.Spec.Action = securityv1beta1.AuthorizationPolicy_DENY
	p.Spec.Rules = []*securityv1beta1.Rule{{}}
	return p
}

func strict(meta metav1.ObjectMeta, selector *typev1beta1.WorkloadSelector) metav1.Object {
	p := &securityv1.PeerAuthentication{ObjectMeta: meta}
	p.Spec.Selector = selector
	p.Spec.Mtls = &securityv1beta1.PeerAuthentication_MutualTLS{Mode: securityv1beta1.PeerAuthentication_MutualTLS_STRICT}
	return p
}

// denyTokens: a rule without an issuer cannot be understood.
func denyTokens(meta metav1.ObjectMeta, selector *typev1beta1.WorkloadSelector) metav1.Object {
	p := &securityv1.RequestAuthentication{ObjectMeta: meta}
	p.Spec.Selector = selector
	p.Spec.JwtRules = []*securityv1beta1.JWTRule{{}}
	return p
}

// Describe says what is wrong with an object in one line, without the place in
// a file: fields are told by their path.
func Describe(err error) string {
	var lines []string
	var add func(error)
	add = func(err error) {
		var e *manifests.Error
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, part := range joined.Unwrap() {
				add(part)
			}
		} else if errors.As(err, &e) && e.Field != "" {
			lines = append(lines, fmt.Sprintf("%s: %v", e.Field, e.Err))
		} else if errors.As(err, &e) {
			lines = append(lines, e.Err.Error())
		} else {
			lines = append(lines, err.Error())
		}
	}
	add(err)
	return strings.Join(lines, "; ")
}
