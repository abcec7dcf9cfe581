package nodeauth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const proxyUser = "system:serviceaccount:tacit-system:tacit-proxy"

// apiServer knows one token, and says of it what a test wants.
type apiServer struct {
	*fake.Clientset
	*Reviewer
	answer  authenticationv1.TokenReviewStatus
	err     error
	reviews int
	clock   time.Time
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{
		Clientset: fake.NewClientset(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "tacit-system", Name: "tacit-proxy-x", UID: "u1"},
			Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "tacit-proxy"},
		}),
		answer: authenticationv1.TokenReviewStatus{
			Authenticated: true, Audiences: []string{"tacitd"},
			User: authenticationv1.UserInfo{Username: proxyUser, Extra: map[string]authenticationv1.ExtraValue{
				podNameKey: {"tacit-proxy-x"}, podUIDKey: {"u1"}, nodeNameKey: {"n1"},
			}},
		},
		clock: time.Now(),
	}
	s.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.reviews++
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		if got := r.Spec.Audiences; len(got) != 1 || got[0] != "tacitd" {
			t.Errorf("asked for the audiences %v", got)
		}
		return true, &authenticationv1.TokenReview{Status: s.answer}, s.err
	})
	s.Reviewer = NewReviewer(s.Clientset, "tacitd", "tacit-system", "tacit-proxy", zap.NewNop())
	s.now = func() time.Time { return s.clock }
	return s
}

// token says of itself that it is a good one, but for what change does.
func token(t *testing.T, change func(*claims)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := claims{Claims: jwt.Claims{Subject: proxyUser, Audience: jwt.Audience{"tacitd"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}}
	c.Kubernetes.Pod.Name, c.Kubernetes.Pod.UID = "tacit-proxy-x", "u1"
	if change != nil {
		change(&c)
	}
	out, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *apiServer) call(t *testing.T, token string) (node string, err error) {
	t.Helper()
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(198, 18, 0, 1), Port: 1}})
	ctx, err = s.Tap(ctx, &tap.Info{Header: metadata.Pairs("authorization", "Bearer "+token)})
	if err != nil {
		return "", err
	}
	return Node(ctx), nil
}

func TestReview(t *testing.T) {
	extra := func(s *apiServer, key string, values ...string) { s.answer.User.Extra[key] = values }
	move := func(s *apiServer, change func(*corev1.Pod)) {
		pod, err := s.Tracker().Get(corev1.SchemeGroupVersion.WithResource("pods"), "tacit-system", "tacit-proxy-x")
		if err != nil {
			t.Fatal(err)
		}
		change(pod.(*corev1.Pod))
		if err := s.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), pod, "tacit-system"); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		change func(*apiServer)
		want   string // the node, or a part of the error
	}{
		{"good", func(*apiServer) {}, "n1"},
		{"an API server that names no node", func(s *apiServer) { extra(s, nodeNameKey) }, "n1"},
		{"refused, as one that was revoked", func(s *apiServer) { s.answer.Authenticated = false }, "does not accept the token"},
		{"for another audience", func(s *apiServer) { s.answer.Audiences = []string{"https://kubernetes.default.svc"} }, "not for the audience"},
		{"an API server without audiences", func(s *apiServer) { s.answer.Audiences = nil }, "not for the audience"},
		{"of another account", func(s *apiServer) { s.answer.User.Username = "system:serviceaccount:tacit-system:default" }, "not of " + proxyUser},
		{"of another namespace", func(s *apiServer) { s.answer.User.Username = "system:serviceaccount:shop:tacit-proxy" }, "not of " + proxyUser},
		{"bound to no pod", func(s *apiServer) { extra(s, podNameKey) }, "not bound to a pod"},
		{"bound to no UID", func(s *apiServer) { extra(s, podUIDKey) }, "not bound to a pod"},
		{"bound to two pods", func(s *apiServer) { extra(s, podNameKey, "tacit-proxy-x", "y") }, "not bound to a pod"},
		{"bound to a pod that is gone", func(s *apiServer) { extra(s, podNameKey, "tacit-proxy-y") }, "pod is gone"},
		{"bound to a former pod of that name", func(s *apiServer) { extra(s, podUIDKey, "u0") }, "pod is gone"},
		{"for another node", func(s *apiServer) { extra(s, nodeNameKey, "n2") }, "another node"},
		{"a pod on no node", func(s *apiServer) { extra(s, nodeNameKey); move(s, func(p *corev1.Pod) { p.Spec.NodeName = "" }) }, "on no node"},
		{"a pod of another account", func(s *apiServer) { move(s, func(p *corev1.Pod) { p.Spec.ServiceAccountName = "default" }) }, "does not run as"},
		{"no answer", func(s *apiServer) { s.err = errors.New("connection refused") }, "the Kubernetes API does not answer"},
		{"not allowed to ask", func(s *apiServer) {
			s.err = apierrors.NewForbidden(schema.GroupResource{Resource: "tokenreviews"}, "", nil)
		}, "the Kubernetes API does not answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newAPIServer(t)
			test.change(s)
			node, err := s.call(t, token(t, nil))
			code := codes.Unauthenticated
			if s.err != nil {
				code = codes.Unavailable
			}
			switch {
			case test.want == "n1" && (err != nil || node != "n1"):
				t.Errorf("got %q, %v", node, err)
			case test.want != "n1" && (status.Code(err) != code || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %q, %v, want %v with %q", node, err, code, test.want)
			}
			if s.reviews != 1 {
				t.Errorf("%d reviews", s.reviews)
			}
		})
	}
}

// What a token says of itself is enough to refuse it, never to accept it.
func TestImplausibleTokensAreNotReviewed(t *testing.T) {
	s := newAPIServer(t)
	for _, test := range []struct{ name, token, want string }{
		{"not a JWT", "0123456789abcdef", "none of a service account"},
		{"empty", "", "none of a service account"},
		{"not signed", "eyJhbGciOiJub25lIn0.e30.", "none of a service account"},
		{"another audience", token(t, func(c *claims) { c.Audience = jwt.Audience{"vault"} }), "audience"},
		{"another account", token(t, func(c *claims) { c.Subject = "system:serviceaccount:tacit-system:default" }), "not of"},
		{"expired", token(t, func(c *claims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-time.Second)) }), "expired"},
		{"unbound", token(t, func(c *claims) { c.Kubernetes.Pod.Name = "" }), "not bound"},
		{"long", strings.Repeat("a", maxServiceToken+1), "want a bearer token"},
	} {
		_, err := s.call(t, test.token)
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
		if test.token != "" && strings.Contains(err.Error(), test.token) {
			t.Errorf("%s: the error shows the token", test.name)
		}
	}
	if s.reviews != 0 {
		t.Errorf("%d reviews", s.reviews)
	}
}

// A revoked token is refused within seconds; until then the API server is not
// asked about each request.
func TestRevocation(t *testing.T) {
	s := newAPIServer(t)
	good := token(t, nil)
	for range 100 {
		if _, err := s.call(t, good); err != nil {
			t.Fatal(err)
		}
	}
	if s.reviews != 1 {
		t.Errorf("%d reviews of one token in one moment", s.reviews)
	}
	s.answer.Authenticated = false
	s.clock = s.clock.Add(reviewLife)
	if _, err := s.call(t, good); status.Code(err) != codes.Unauthenticated {
		t.Errorf("revoked: got %v", err)
	}
	if reviewLife > 5*time.Second {
		t.Errorf("a revoked token is good for %v", reviewLife)
	}
}

// Refusals are not remembered: a pod that the API server shows a moment later
// is let in.
func TestRefusalIsNotRemembered(t *testing.T) {
	s := newAPIServer(t)
	good := token(t, nil)
	s.err = errors.New("away")
	if _, err := s.call(t, good); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	s.err = nil
	if node, err := s.call(t, good); node != "n1" {
		t.Errorf("got %q, %v", node, err)
	}
}

func TestFloodOfTokens(t *testing.T) {
	s := newAPIServer(t)
	s.answer.Authenticated = false
	refused := 0
	for range 2 * reviewsAtOnce {
		if _, err := s.call(t, token(t, nil)); status.Code(err) == codes.ResourceExhausted {
			refused++
		}
	}
	if s.reviews > reviewsAtOnce+reviewsPerSecond*5 || refused == 0 {
		t.Errorf("%d reviews, %d refused", s.reviews, refused)
	}
	if _, err := s.authenticate(t.Context(), "198.18.0.2", metadata.Pairs("authorization", "Bearer "+token(t, nil))); status.Code(err) != codes.Unauthenticated {
		t.Errorf("another address: %v, want that it is still asked about", err)
	}
}
