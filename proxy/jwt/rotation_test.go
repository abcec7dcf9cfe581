package jwt_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/proxy/jwt"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/jwks"
	"github.com/tacit-mesh/tacit/xds/model"
)

const patience = 20 * time.Second

// provider is an OpenID provider that signs with its newest key.
type provider struct {
	*httptest.Server
	keys atomic.Pointer[jose.JSONWebKeySet]
	key  crypto.Signer
	id   string
}

func newProvider(t *testing.T) *provider {
	p := &provider{}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/.well-known/openid-configuration" {
			_, _ = fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q}`, p.URL, p.URL+"/keys")
			return
		}
		_ = json.NewEncoder(w).Encode(p.keys.Load())
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *provider) rotate(t *testing.T, id string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key, p.id = key, id
	p.keys.Store(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Use: "sig"}}})
}

func (p *provider) token(t *testing.T) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key}, (&jose.SignerOptions{}).WithHeader("kid", p.id))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(`{"iss":"` + p.URL + `","sub":"me"}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// From an OpenID provider's configuration to the verdict on a token: a key that
// is rotated in is accepted once it has been fetched, one rotated out no longer.
func TestKeysRotate(t *testing.T) {
	p := newProvider(t)
	p.rotate(t, "one")
	pod, auth := &corev1.Pod{}, &securityv1.RequestAuthentication{}
	parse(t, "{metadata: {name: web, namespace: shop, uid: u}, spec: {nodeName: n}, status: {phase: Running, podIP: 198.18.0.1}}", pod)
	parse(t, "{metadata: {name: r, namespace: shop}, spec: {jwtRules: [{issuer: '"+p.URL+"'}]}}", auth)
	mesh := build.New(build.Settings{})
	s := model.NewSnapshot().Apply(mesh.Apply((&build.Objects{Pods: []*corev1.Pod{pod}, RequestAuthentications: []*securityv1.RequestAuthentication{auth}}).Since(nil)))
	v := jwt.NewVerifier()
	verdict := func(token string) jwt.Outcome {
		headers := []policy.HeaderField{{Name: "Authorization", Value: "Bearer " + token}}
		return v.Authenticate(s, s.Workloads()[0], 80, headers, "", time.Now()).Outcome
	}
	first := p.token(t)
	if got := verdict(first); got != jwt.Refused {
		t.Fatalf("without keys: %d", got)
	}
	fetch := func() {
		t.Helper()
		sets := make(chan map[string]string, 10)
		f := jwks.New(jwks.Config{Log: zap.NewNop(), Parse: build.PublicKeys, Transport: p.Client().Transport, Changed: func(m map[string]string) { sets <- m }})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- f.Run(ctx) }()
		source := mesh.KeySources()[0]
		f.Want([]jwks.Source{{Name: source.Name(), Issuer: source.Issuer, URI: source.URI}})
		select {
		case set := <-sets:
			s = s.Apply(mesh.SetKeySets(set))
		case <-time.After(patience):
			t.Fatal("no key set came")
		}
		cancel()
		<-ended
	}
	fetch()
	if got := verdict(first); got != jwt.Verified {
		t.Errorf("with the first key: %d", got)
	}
	p.rotate(t, "two")
	second := p.token(t)
	if got := verdict(second); got != jwt.Refused {
		t.Errorf("before the new key has been fetched: %d", got)
	}
	fetch()
	if got := verdict(second); got != jwt.Verified {
		t.Errorf("with the new key: %d", got)
	}
	if got := verdict(first); got != jwt.Refused {
		t.Errorf("a token of the key that is gone: %d", got)
	}
}

func parse(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}
