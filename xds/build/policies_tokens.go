package build

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// The prefixes of the names under which other kinds than AuthorizationPolicy
// travel. No object of Kubernetes can have such a name.
const (
	authenticationPrefix = "request_authentication_"
	limitPrefix          = "rate_limit_"
	linkerdLimitPrefix   = "http_local_rate_limit_policy_"
)

// KeySource is where an issuer's key set is fetched: at URI or, if that is
// empty, where the issuer's own configuration says (OpenID Connect Discovery).
type KeySource struct {
	Issuer, URI string
	Timeout     time.Duration // of a fetch; 0 if no policy says
}

// Name is the key of PolicyInput.KeySets.
func (s KeySource) Name() string {
	if s.URI != "" {
		return s.URI
	}
	return "issuer " + s.Issuer
}

// requestAuthentication translates one RequestAuthentication. One that cannot
// be understood denies.
func (b *policyBuilder) requestAuthentication(obj *securityv1.RequestAuthentication) {
	spec := &obj.Spec
	st := newStatus("RequestAuthentication", &obj.ObjectMeta)
	refs := spec.TargetRefs
	if spec.TargetRef != nil {
		refs = append(refs[:len(refs):len(refs)], spec.TargetRef)
	}
	if t, ours := b.scope(obj.Namespace, istioSelector(spec.Selector), refs, &st); ours {
		p := &model.Policy{
			Name: authenticationPrefix + obj.Name, Namespace: obj.Namespace, Scope: t.scope, Ports: t.ports,
			Action: model.ActionAuthenticate, Authentication: &model.RequestAuthentication{},
		}
		for i, rule := range spec.JwtRules {
			path := fmt.Sprintf("spec.jwtRules[%d]", i)
			if rule.GetIssuer() == "" {
				p.Action, p.Unknown = model.ActionDeny, path+".issuer: missing"
				st.say("%s: everything is denied", p.Unknown)
				continue
			}
			p.Authentication.Rules = append(p.Authentication.Rules, b.jwtRule(path, rule, &st))
		}
		b.publish(p, t, &st)
	}
	b.statuses = append(b.statuses, st)
}

func (b *policyBuilder) jwtRule(path string, in *securityv1beta1.JWTRule, st *PolicyStatus) model.JWTRule {
	out := model.JWTRule{
		Issuer: in.GetIssuer(), Audiences: in.GetAudiences(), FromParams: in.GetFromParams(), FromCookies: in.GetFromCookies(),
		Forward: in.GetForwardOriginalToken(), SpaceDelimited: in.GetSpaceDelimitedClaims(),
		Keys: b.keys(path, in, st),
	}
	for _, h := range in.GetFromHeaders() {
		out.FromHeaders = append(out.FromHeaders, model.JWTHeader{Name: h.GetName(), Prefix: h.GetPrefix()})
	}
	if out.PayloadHeader = in.GetOutputPayloadToHeader(); out.PayloadHeader != "" && !headerName.MatchString(out.PayloadHeader) {
		st.say("%s.outputPayloadToHeader: %q is not the name of a header: not set", path, out.PayloadHeader)
		out.PayloadHeader = ""
	}
	for i, h := range in.GetOutputClaimToHeaders() {
		if !headerName.MatchString(h.GetHeader()) || h.GetClaim() == "" {
			st.say("%s.outputClaimToHeaders[%d]: want the name of a header and a claim: not set", path, i)
			continue
		}
		out.ClaimHeaders = append(out.ClaimHeaders, model.ClaimHeader{Header: h.GetHeader(), Claim: h.GetClaim()})
	}
	return out
}

// keys are the issuer's, as they are given or as they were fetched.
func (b *policyBuilder) keys(path string, in *securityv1beta1.JWTRule, st *PolicyStatus) string {
	if in.GetJwks() != "" {
		if in.GetJwksUri() != "" {
			st.say("%s.jwksUri: not used: the keys are given by jwks", path)
		}
		keys, err := PublicKeys([]byte(in.GetJwks()))
		if err != nil {
			st.say("%s.jwks: %v: no token of this issuer is accepted", path, err)
		}
		return keys
	}
	source := KeySource{Issuer: in.GetIssuer(), URI: in.GetJwksUri(), Timeout: b.timeout(path, in, st)}
	b.keySources = append(b.keySources, source)
	keys := b.keySets[source.Name()]
	if keys == "" {
		st.say("%s: the keys of %s have not been fetched: no token of this issuer is accepted", path, source.Name())
	}
	return keys
}

// timeout is what the rule gives a fetch of keys.
func (b *policyBuilder) timeout(path string, in *securityv1beta1.JWTRule, st *PolicyStatus) time.Duration {
	if in.GetTimeout() == nil {
		return 0
	}
	d := in.GetTimeout().AsDuration()
	if in.GetTimeout().CheckValid() != nil || d <= 0 {
		st.say("%s.timeout: not above 0: not used", path)
		return 0
	}
	return d
}

// patient leaves of several sources with one name the one that gives a fetch
// the most time.
func patient(sources []KeySource) []KeySource {
	slices.SortFunc(sources, func(x, y KeySource) int {
		return cmp.Or(strings.Compare(x.Name(), y.Name()), cmp.Compare(y.Timeout, x.Timeout))
	})
	return slices.CompactFunc(sources, func(x, y KeySource) bool { return x.Name() == y.Name() })
}

// PublicKeys brings a JWK Set (RFC 7517) to the form in which it travels: the
// keys that tokens may be signed with, and of those the public parts. One that
// is of no use, or secret, is left out; none that is left is an error.
func PublicKeys(document []byte) (string, error) {
	var in struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &in); err != nil {
		return "", fmt.Errorf("not a JWK Set: %w", err)
	}
	var out jose.JSONWebKeySet
	for _, raw := range in.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil || !key.Valid() || key.Use != "" && key.Use != "sig" {
			continue
		}
		if public := key.Public(); public.Key != nil {
			out.Keys = append(out.Keys, jose.JSONWebKey{
				Key: public.Key, KeyID: public.KeyID, Algorithm: public.Algorithm, Use: public.Use,
			})
		}
	}
	if len(out.Keys) == 0 {
		return "", fmt.Errorf("none of %d keys can verify a signature (RSA, EC or OKP, public)", len(in.Keys))
	}
	text, err := json.Marshal(out)
	if err != nil {
		return "", fmt.Errorf("not a JWK Set: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
