package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const issuer = "https://issuer.example"

// signer holds one key of an issuer.
type signer struct {
	id      string
	private crypto.Signer
}

func newSigner(t testing.TB, id, kind string) signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "RSA":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, key}
}

func (s signer) sign(t testing.TB, algorithm jose.SignatureAlgorithm, claims string) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if s.id != "" {
		options = options.WithHeader("kid", s.id)
	}
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: s.private}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := by.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func keysOf(t testing.TB, signers ...signer) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range signers {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.private.Public(), KeyID: s.id})
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func workload() *model.Workload {
	return &model.Workload{UID: "w", Namespace: "ns", ServiceAccount: "sa", TrustDomain: "td", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
}

func snapshot(rules ...model.JWTRule) *model.Snapshot {
	return model.NewSnapshot().Apply(model.Update{
		Workloads: []*model.Workload{workload()}, AddressesComplete: true, PoliciesComplete: true,
		Policies: []*model.Policy{{
			Name: "request_authentication_a", Namespace: "ns", Scope: model.ScopeNamespace, Action: model.ActionAuthenticate,
			Authentication: &model.RequestAuthentication{Rules: rules},
		}},
	})
}

func ask(s *model.Snapshot, headers []policy.HeaderField, query string) Result {
	return NewVerifier().Authenticate(s, workload(), 80, headers, query, now)
}

func bearerOf(token string) []policy.HeaderField {
	return []policy.HeaderField{{Name: "authorization", Value: "Bearer " + token}}
}

func TestAlgorithms(t *testing.T) {
	kinds := map[string][]jose.SignatureAlgorithm{
		"RSA": {jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, "P-256": {jose.ES256},
		"P-384": {jose.ES384}, "P-521": {jose.ES512}, "Ed25519": {jose.EdDSA},
	}
	var tried []jose.SignatureAlgorithm
	for kind, list := range kinds {
		key, other := newSigner(t, "k", kind), newSigner(t, "k", kind)
		for _, algorithm := range list {
			tried = append(tried, algorithm)
			token := key.sign(t, algorithm, `{"iss":"https://issuer.example","sub":"me"}`)
			r := ask(snapshot(model.JWTRule{Issuer: issuer, Keys: keysOf(t, key)}), bearerOf(token), "")
			if r.Outcome != Verified || r.Claims.Principal() != issuer+"/me" {
				t.Errorf("%s: %d, %s", algorithm, r.Outcome, r.Reason)
			}
			if r := ask(snapshot(model.JWTRule{Issuer: issuer, Keys: keysOf(t, other)}), bearerOf(token), ""); r.Outcome != Refused {
				t.Errorf("%s: the key of somebody else: %d", algorithm, r.Outcome)
			}
		}
	}
	if len(tried) != len(algorithms) {
		t.Errorf("%d algorithms tried of %d", len(tried), len(algorithms))
	}
}

func unsigned(header, claims string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "."
}

func TestRefusals(t *testing.T) {
	key := newSigner(t, "k", "RSA")
	keys := keysOf(t, key)
	claims := `{"iss":"https://issuer.example","sub":"me","aud":["a","b"]}`
	good := key.sign(t, jose.RS256, claims)
	secret, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(keys)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	confused, err := secret.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	hmac, err := confused.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(claims string) string { return key.sign(t, jose.RS256, claims) }
	rule := model.JWTRule{Issuer: issuer, Keys: keys}
	for _, test := range []struct {
		name, token string
		rule        model.JWTRule
		reason      string // empty: accepted
	}{
		{"good", good, rule, ""},
		{"none", unsigned(`{"alg":"none"}`, claims), rule, "malformed, or of an algorithm"},
		{"None", unsigned(`{"alg":"None"}`, claims), rule, "malformed, or of an algorithm"},
		{"HMAC with the public key", hmac, rule, "malformed, or of an algorithm"},
		{"no token at all", "", rule, "malformed"},
		{"two parts", "a.b", rule, "malformed"},
		{"too long", strings.Repeat("a", maxToken+1), rule, "too long"},
		{"changed claims", strings.Split(good, ".")[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(claims+" ")) + "." + strings.Split(good, ".")[2], rule, "signature is wrong"},
		{"another issuer", sign(`{"iss":"https://evil.example"}`), rule, "issuer is none of those accepted"},
		{"no issuer", sign(`{"sub":"me"}`), rule, "issuer is none of those accepted"},
		{"payload is a list", sign(`[]`), rule, "payload is malformed"},
		{"payload and more", sign(claims + `{}`), rule, "payload is malformed"},
		{"no keys", good, model.JWTRule{Issuer: issuer}, "keys are not available"},
		{"key of another name", good, model.JWTRule{Issuer: issuer, Keys: strings.Replace(keys, `"kid":"k"`, `"kid":"l"`, 1)}, "none of the issuer's keys"},
		{"key without a name", good, model.JWTRule{Issuer: issuer, Keys: strings.Replace(keys, `"kid":"k",`, "", 1)}, ""},
		{"key of another algorithm", good, model.JWTRule{Issuer: issuer, Keys: strings.Replace(keys, `"kid":"k"`, `"kid":"k","alg":"PS256"`, 1)}, "none of the issuer's keys"},
		{"key for encryption", good, model.JWTRule{Issuer: issuer, Keys: strings.Replace(keys, `"kid":"k"`, `"kid":"k","use":"enc"`, 1)}, "keys are not available"},
		{"beside a key of a kind to come", good, model.JWTRule{Issuer: issuer, Keys: strings.Replace(keys, `[`, `[{"kty":"ML-DSA"},`, 1)}, ""},
		{"audience", good, model.JWTRule{Issuer: issuer, Keys: keys, Audiences: []string{"x", "b"}}, ""},
		{"another audience", good, model.JWTRule{Issuer: issuer, Keys: keys, Audiences: []string{"x"}}, "audience is another"},
		{"just expired", sign(`{"iss":"https://issuer.example","exp":1795262341}`), rule, ""},
		{"expired", sign(`{"iss":"https://issuer.example","exp":1795262340}`), rule, "expired"},
		{"almost valid", sign(`{"iss":"https://issuer.example","nbf":1795262460}`), rule, ""},
		{"not valid yet", sign(`{"iss":"https://issuer.example","nbf":1795262461}`), rule, "not valid yet"},
		{"expiry is text", sign(`{"iss":"https://issuer.example","exp":"9999999999"}`), rule, "no number"},
		{"expiry beyond all bounds", sign(`{"iss":"https://issuer.example","exp":1e300}`), rule, "no number"},
	} {
		v := NewVerifier()
		for range 2 { // the second time from memory
			r := v.Authenticate(snapshot(test.rule), workload(), 80, bearerOf(test.token), "", now)
			if accepted := r.Outcome == Verified; accepted != (test.reason == "") || !strings.Contains(r.Reason, test.reason) {
				t.Errorf("%s: outcome %d, %q; want %q", test.name, r.Outcome, r.Reason, test.reason)
			}
			if r.Outcome == Refused && (r.Claims != nil || r.Policy != "ns/request_authentication_a" || test.token != "" && strings.Contains(r.Reason, test.token)) {
				t.Errorf("%s: refused with claims %v by %q: %q", test.name, r.Claims, r.Policy, r.Reason)
			}
		}
	}
}

// A token that was remembered expires like any other.
func TestRememberedTokensExpire(t *testing.T) {
	key := newSigner(t, "k", "P-256")
	s := snapshot(model.JWTRule{Issuer: issuer, Keys: keysOf(t, key)})
	headers := bearerOf(key.sign(t, jose.ES256, `{"iss":"https://issuer.example","exp":1795262400}`))
	v := NewVerifier()
	for _, test := range []struct {
		after time.Duration
		want  Outcome
	}{{0, Verified}, {59 * time.Second, Verified}, {time.Minute, Refused}} {
		if r := v.Authenticate(s, workload(), 80, headers, "", now.Add(test.after)); r.Outcome != test.want {
			t.Errorf("after %v: %d, %s", test.after, r.Outcome, r.Reason)
		}
	}
}

func TestPlaces(t *testing.T) {
	key := newSigner(t, "k", "P-256")
	token := key.sign(t, jose.ES256, `{"iss":"https://issuer.example","sub":"me","n":{"g":"x","i":7,"o":true,"l":["a"],"evil":"a\r\nb: c"}}`)
	payload := strings.Split(token, ".")[1]
	rule := model.JWTRule{Issuer: issuer, Keys: keysOf(t, key)}
	with := func(change func(*model.JWTRule)) model.JWTRule {
		r := rule
		change(&r)
		return r
	}
	type fields = []policy.HeaderField
	for _, test := range []struct {
		name    string
		rule    model.JWTRule
		headers fields
		query   string
		outcome Outcome
		left    fields
		rest    string
	}{
		{"nothing", rule, fields{{Name: "A", Value: "b"}}, "x=1", NoToken, fields{{Name: "A", Value: "b"}}, "x=1"},
		{"bearer", rule, fields{{Name: "AUTHORIZATION", Value: "bearer " + token}, {Name: "A", Value: "b"}}, "x=1", Verified, fields{{Name: "A", Value: "b"}}, "x=1"},
		{"basic is no token", rule, fields{{Name: "Authorization", Value: "Basic " + token}}, "", NoToken, fields{{Name: "Authorization", Value: "Basic " + token}}, ""},
		{"parameter", rule, nil, "x=1&access%5Ftoken=" + token + "&y", Verified, fields{}, "x=1&y"},
		{"forwarded", with(func(r *model.JWTRule) { r.Forward = true }), bearerOf(token), "", Verified, bearerOf(token), ""},
		{"header of its own", with(func(r *model.JWTRule) { r.FromHeaders = []model.JWTHeader{{Name: "X-Jwt", Prefix: "jwt:"}} }),
			fields{{Name: "x-jwt", Value: "jwt:" + token}, {Name: "x-jwt", Value: "other"}}, "", Verified, fields{}, ""},
		{"not where the rule looks", with(func(r *model.JWTRule) { r.FromHeaders = []model.JWTHeader{{Name: "X-Jwt"}} }), bearerOf("junk"), "access_token=junk", NoToken, bearerOf("junk"), "access_token=junk"},
		{"parameter of its own", with(func(r *model.JWTRule) { r.FromParams = []string{"t"} }), nil, "t=" + token, Verified, fields{}, ""},
		{"cookie", with(func(r *model.JWTRule) { r.FromCookies = []string{"t"} }),
			fields{{Name: "Cookie", Value: "a=b; t=" + token + "; c=d"}}, "", Verified, fields{{Name: "Cookie", Value: "a=b; c=d"}}, ""},
		{"junk in the cookie", with(func(r *model.JWTRule) { r.FromCookies = []string{"t"} }), fields{{Name: "Cookie", Value: "t=junk"}}, "", Refused, nil, ""},
		{"one good, one bad", rule, bearerOf(token), "access_token=junk", Refused, nil, ""},
		{"too many", with(func(r *model.JWTRule) { r.FromParams = []string{"t"} }), nil, "t=1&t=2&t=3&t=4&t=5&t=6&t=7&t=8&t=9", Refused, nil, ""},
		{"claims as headers", with(func(r *model.JWTRule) {
			r.PayloadHeader = "X-Payload"
			r.ClaimHeaders = []model.ClaimHeader{{Header: "X-G", Claim: "n.g"}, {Header: "X-I", Claim: "n.i"}, {Header: "X-O", Claim: "n.o"}, {Header: "X-L", Claim: "n.l"}, {Header: "X-E", Claim: "n.evil"}, {Header: "X-N", Claim: "no"}}
		}), append(bearerOf(token), policy.HeaderField{Name: "x-g", Value: "forged"}), "", Verified, fields{{Name: "X-Payload", Value: payload}, {Name: "X-G", Value: "x"}, {Name: "X-I", Value: "7"}, {Name: "X-O", Value: "true"}}, ""},
		{"forged claims in other spellings", with(func(r *model.JWTRule) {
			r.PayloadHeader, r.ClaimHeaders = "X-The-Payload", []model.ClaimHeader{{Header: "x_group", Claim: "n.g"}}
		}), append(bearerOf(token), fields{{Name: "X_The-Payload", Value: "forged"}, {Name: "X-Group", Value: "forged"}, {Name: "x_GROUP", Value: "forged"}}...), "", Verified,
			fields{{Name: "X-The-Payload", Value: payload}, {Name: "x_group", Value: "x"}}, ""},
		{"forged claims without a token", with(func(r *model.JWTRule) { r.PayloadHeader = "X-Payload" }), fields{{Name: "x-payload", Value: "forged"}}, "", NoToken, fields{}, ""},
	} {
		r := ask(snapshot(test.rule), test.headers, test.query)
		if r.Outcome != test.outcome {
			t.Errorf("%s: outcome %d, %s; want %d", test.name, r.Outcome, r.Reason, test.outcome)
		}
		if test.outcome == Refused {
			continue
		}
		left, rest := r.Apply(test.headers, test.query)
		if diff := cmp.Diff(test.left, left); diff != "" || rest != test.rest {
			t.Errorf("%s: query %q, want %q; headers (-want +got):\n%s", test.name, rest, test.rest, diff)
		}
	}
}

// Several rules may look at the same place; whichever issued the token counts.
func TestSeveralIssuers(t *testing.T) {
	a, b := newSigner(t, "k", "P-256"), newSigner(t, "k", "P-256")
	s := snapshot(model.JWTRule{Issuer: "a", Keys: keysOf(t, a)}, model.JWTRule{Issuer: "b", Keys: keysOf(t, b)})
	for _, test := range []struct {
		name, token, principal string
	}{
		{"the first", a.sign(t, jose.ES256, `{"iss":"a","sub":"s"}`), "a/s"},
		{"the second", b.sign(t, jose.ES256, `{"iss":"b","sub":"s"}`), "b/s"},
		{"one with the other's key", b.sign(t, jose.ES256, `{"iss":"a","sub":"s"}`), ""},
	} {
		r := ask(s, bearerOf(test.token), "")
		if got := r.Claims.Principal(); got != test.principal || (r.Outcome == Verified) != (got != "") {
			t.Errorf("%s: outcome %d, principal %q, %s", test.name, r.Outcome, got, r.Reason)
		}
	}
	if r := ask(model.NewSnapshot().Apply(model.Update{Workloads: []*model.Workload{workload()}}), bearerOf("junk"), ""); r.Outcome != NoRules {
		t.Errorf("without rules: %d", r.Outcome)
	}
}

// FuzzToken: nothing but what the key has signed is ever accepted, and nothing
// breaks.
func FuzzToken(f *testing.F) {
	key := newSigner(f, "k", "P-256")
	good := key.sign(f, jose.ES256, `{"iss":"https://issuer.example"}`)
	s := snapshot(model.JWTRule{Issuer: issuer, Keys: keysOf(f, key), FromCookies: []string{"t"}, FromParams: []string{"t"}, FromHeaders: []model.JWTHeader{{Name: "Authorization", Prefix: bearer}}})
	f.Add("Bearer "+good, "t="+good)
	f.Add("Bearer "+unsigned(`{"alg":"none"}`, `{"iss":"https://issuer.example"}`), "")
	f.Add("Bearer a.b.c", "t=%zz&t")
	f.Fuzz(func(t *testing.T, value, query string) {
		headers := []policy.HeaderField{{Name: "Authorization", Value: value}, {Name: "Cookie", Value: value}}
		r := ask(s, headers, query)
		if r.Outcome == Verified && !strings.Contains(value+query, good[:len(good)-1]) && !strings.Contains(query, "%") {
			t.Fatalf("accepted %q %q", value, query)
		}
		r.Apply(headers, query)
	})
}
