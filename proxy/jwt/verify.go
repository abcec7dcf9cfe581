package jwt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// algorithms are those accepted: public keys alone, so that a public key never
// serves as a shared secret.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

const (
	// maxToken bounds a token; headers are bounded as well.
	maxToken = 16 << 10
	// leeway is how far clocks may be apart.
	leeway = time.Minute
	// otherIssuer is the reason of rules that a token is not meant for.
	otherIssuer = "its issuer is another"
)

// token is one that a rule accepts, but for the time.
type token struct {
	claims         *policy.Claims
	payload        string // in base64url
	before, expiry time.Time
}

// verify returns why the token is not accepted; empty if it is.
func verify(rule *model.JWTRule, keys *keySet, text string) (*token, string) {
	if len(text) > maxToken {
		return nil, "it is too long"
	}
	signed, err := jose.ParseSignedCompact(text, algorithms)
	if err != nil {
		return nil, "it is malformed, or of an algorithm that is not accepted"
	}
	claims, err := decodeClaims(signed.UnsafePayloadWithoutVerification())
	if err != nil {
		return nil, "its payload is malformed"
	}
	if issuer, _ := claims["iss"].(string); issuer != rule.Issuer {
		return nil, otherIssuer
	}
	if reason := keys.check(signed); reason != "" {
		return nil, reason
	}
	out := &token{payload: strings.Split(text, ".")[1]}
	var ok1, ok2 bool
	out.before, ok1 = moment(claims["nbf"])
	out.expiry, ok2 = moment(claims["exp"])
	switch {
	case !ok1 || !ok2:
		return nil, "its nbf or exp is no number"
	case !hasAudience(claims["aud"], rule.Audiences):
		return nil, "its audience is another"
	}
	out.claims = policy.NewClaims(claims, rule.SpaceDelimited)
	return out, ""
}

// at returns why the token is not accepted at this time.
func (t *token) at(now time.Time) string {
	switch {
	case !t.expiry.IsZero() && !now.Before(t.expiry.Add(leeway)):
		return "it has expired"
	case !t.before.IsZero() && now.Before(t.before.Add(-leeway)):
		return "it is not valid yet"
	}
	return ""
}

func decodeClaims(payload []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var claims map[string]any
	if err := d.Decode(&claims); err != nil {
		return nil, err
	}
	if d.More() || claims == nil {
		return nil, fmt.Errorf("not one object")
	}
	return claims, nil
}

// moment is zero for a claim that is absent.
func moment(claim any) (time.Time, bool) {
	if claim == nil {
		return time.Time{}, true
	}
	number, ok := claim.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := number.Float64()
	if err != nil || math.Abs(seconds) > 1e12 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

func hasAudience(claim any, accepted []string) bool {
	if len(accepted) == 0 {
		return true
	}
	switch v := claim.(type) {
	case string:
		return slices.Contains(accepted, v)
	case []any:
		return slices.ContainsFunc(v, func(element any) bool {
			text, ok := element.(string)
			return ok && slices.Contains(accepted, text)
		})
	}
	return false
}

// claimHeader is a claim as the value of a header; only text, whole numbers
// and truth values have such a form.
func claimHeader(claim any) (string, bool) {
	switch v := claim.(type) {
	case string:
		return v, !strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' })
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		_, err := v.Int64()
		return v.String(), err == nil
	}
	return "", false
}

// keySet are the keys of one issuer.
type keySet struct{ keys []jose.JSONWebKey }

// parseKeys leaves out keys that are of no use, so that one of a kind that
// comes up later does not take the others with it.
func parseKeys(document string) *keySet {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal([]byte(document), &set) != nil {
		return &keySet{}
	}
	out := &keySet{}
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) == nil && key.IsPublic() && (key.Use == "" || key.Use == "sig") {
			out.keys = append(out.keys, key)
		}
	}
	return out
}

func (s *keySet) check(signed *jose.JSONWebSignature) string {
	if len(s.keys) == 0 {
		return "the issuer's keys are not available"
	}
	header := signed.Signatures[0].Protected
	fitting := false
	for i := range s.keys {
		key := &s.keys[i]
		switch {
		case header.KeyID != "" && key.KeyID != "" && header.KeyID != key.KeyID:
		case key.Algorithm != "" && key.Algorithm != header.Algorithm:
		case !fits(key.Key, header.Algorithm):
		default:
			fitting = true
			if _, err := signed.Verify(key.Key); err == nil {
				return ""
			}
		}
	}
	if !fitting {
		return "it is signed with none of the issuer's keys"
	}
	return "its signature is wrong"
}

func fits(key any, algorithm string) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return algorithm[0] == 'R' || algorithm[0] == 'P'
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	case *ecdsa.PublicKey:
		return algorithm == curveAlgorithm(k.Curve)
	}
	return false
}

func curveAlgorithm(curve elliptic.Curve) string {
	switch curve {
	case elliptic.P256():
		return string(jose.ES256)
	case elliptic.P384():
		return string(jose.ES384)
	case elliptic.P521():
		return string(jose.ES512)
	}
	return ""
}
