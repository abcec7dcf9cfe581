package nodeauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tacit-mesh/tacit/internal/kube"
)

const (
	// reviewLimit bounds the questions to the API server about one token. A
	// call waits for them on its connection's own goroutine: the connection
	// of another proxy does not.
	reviewLimit = 3 * time.Second
	// reviewLife is how long an answer is good for: a proxy that starts asks
	// for many certificates at once. So long a token outlives its revocation.
	reviewLife = 2 * time.Second
	maxReviews = 8192 // answers kept

	// Questions to the API server about tokens that come from one address.
	reviewsPerSecond = 5
	reviewsAtOnce    = 50
	maxAddresses     = 8192
	// Service accounts' tokens are long: their claims name a pod and a node.
	maxServiceToken = 16 << 10
)

// The names under which an API server tells what a token is bound to.
const (
	podNameKey  = "authentication.kubernetes.io/pod-name"
	podUIDKey   = "authentication.kubernetes.io/pod-uid"
	nodeNameKey = "authentication.kubernetes.io/node-name"
)

// Reviewer authenticates by tokens of the cluster: one is good if it is for
// the audience, of the service account, and bound to a pod that there is. The
// node is the one that this pod runs on. While the API server does not answer
// nobody new is let in.
type Reviewer struct {
	client                       kubernetes.Interface
	audience, namespace, account string
	log                          *zap.Logger
	now                          func() time.Time

	mu        sync.Mutex
	reviews   map[[sha256.Size]byte]review
	addresses map[string]*rate.Limiter
}

type review struct {
	node string
	ends time.Time
}

// NewReviewer lets in the pods of one service account.
func NewReviewer(client kubernetes.Interface, audience, namespace, account string, log *zap.Logger) *Reviewer {
	return &Reviewer{
		client: client, audience: audience, namespace: namespace, account: account, log: log, now: time.Now,
		reviews: map[[sha256.Size]byte]review{}, addresses: map[string]*rate.Limiter{},
	}
}

// Tap is for grpc.InTapHandle. It refuses a call before anything of its body
// is read.
func (r *Reviewer) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	address := ""
	if p, ok := peer.FromContext(ctx); ok {
		address = host(p.Addr)
	}
	node, err := r.authenticate(ctx, address, info.Header)
	if err != nil {
		r.log.Warn("caller refused", zap.String("address", address), zap.Error(err))
		return nil, err
	}
	return withNode(ctx, node), nil
}

func (r *Reviewer) authenticate(ctx context.Context, address string, header metadata.MD) (string, error) {
	token, err := bearer(header, maxServiceToken)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(token))
	if node := r.recall(sum); node != "" {
		return node, nil
	}
	if err := r.plausible(token); err != nil {
		return "", status.Error(codes.Unauthenticated, err.Error())
	}
	if !r.limit(address).Allow() {
		return "", status.Error(codes.ResourceExhausted, "too many tokens from this address")
	}
	ctx, cancel := context.WithTimeout(ctx, reviewLimit)
	defer cancel()
	node, err := r.review(ctx, token)
	if err != nil {
		return "", err
	}
	r.remember(sum, node)
	return node, nil
}

// claims are what a token says of itself.
type claims struct {
	jwt.Claims
	Kubernetes struct {
		Pod struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"pod"`
	} `json:"kubernetes.io"`
}

// plausible refuses what the API server would refuse as well, so that not
// every piece of text becomes a question to it. It proves nothing.
func (r *Reviewer) plausible(token string) error {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	})
	if err != nil {
		return errors.New("the token is none of a service account")
	}
	var c claims
	if err := parsed.UnsafeClaimsWithoutVerification(&c); err != nil {
		return errors.New("the token is none of a service account")
	}
	switch {
	case !c.Audience.Contains(r.audience):
		return fmt.Errorf("the token is not for the audience %q: the projected volume must name it", r.audience)
	case c.Subject != r.user():
		return fmt.Errorf("the token is not of %s", r.user())
	case c.Expiry != nil && !r.now().Before(c.Expiry.Time()):
		return errors.New("the token has expired")
	case c.Kubernetes.Pod.Name == "" || c.Kubernetes.Pod.UID == "":
		return errors.New("the token is not bound to a pod: it must come from a projected volume")
	}
	return nil
}

func (r *Reviewer) user() string {
	return "system:serviceaccount:" + r.namespace + ":" + r.account
}

// review asks the API server, which alone knows what is true.
func (r *Reviewer) review(ctx context.Context, token string) (node string, err error) {
	answer, err := r.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", r.unanswered(kube.Explain(err, "create", "tokenreviews.authentication.k8s.io", ""))
	}
	st := &answer.Status
	name, uid := one(st.User.Extra[podNameKey]), one(st.User.Extra[podUIDKey])
	switch {
	case !st.Authenticated:
		return "", status.Error(codes.Unauthenticated, "the API server does not accept the token")
	case !slices.Contains(st.Audiences, r.audience):
		return "", status.Errorf(codes.Unauthenticated, "the token is not for the audience %q", r.audience)
	case st.User.Username != r.user():
		return "", status.Errorf(codes.Unauthenticated, "the token is not of %s", r.user())
	case name == "" || uid == "":
		return "", status.Error(codes.Unauthenticated, "the token is not bound to a pod")
	}
	pod, err := r.client.CoreV1().Pods(r.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", status.Error(codes.Unauthenticated, "the token's pod is gone")
	}
	if err != nil {
		return "", r.unanswered(kube.Explain(err, "get", "pods", r.namespace))
	}
	said := one(st.User.Extra[nodeNameKey])
	switch {
	case string(pod.UID) != uid:
		return "", status.Error(codes.Unauthenticated, "the token's pod is gone")
	case pod.Spec.ServiceAccountName != r.account:
		return "", status.Errorf(codes.Unauthenticated, "the token's pod does not run as %s", r.account)
	case pod.Spec.NodeName == "":
		return "", status.Error(codes.Unauthenticated, "the token's pod is on no node")
	case said != "" && said != pod.Spec.NodeName:
		return "", status.Error(codes.Unauthenticated, "the token is for another node than the one its pod runs on")
	}
	return pod.Spec.NodeName, nil
}

func (r *Reviewer) unanswered(err error) error {
	r.log.Error("tokens cannot be checked; whoever is connected stays so", zap.Error(err))
	return status.Error(codes.Unavailable, "tokens cannot be checked now: the Kubernetes API does not answer tacitd")
}

// one is the only value; "" if there is none or there are several.
func one(values []string) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

func (r *Reviewer) recall(sum [sha256.Size]byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.reviews[sum]; ok && r.now().Before(known.ends) {
		return known.node
	}
	return ""
}

func (r *Reviewer) remember(sum [sha256.Size]byte, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.reviews) >= maxReviews {
		clear(r.reviews)
	}
	r.reviews[sum] = review{node, r.now().Add(reviewLife)}
}

func (r *Reviewer) limit(address string) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.addresses) >= maxAddresses {
		clear(r.addresses)
	}
	if r.addresses[address] == nil {
		r.addresses[address] = rate.NewLimiter(reviewsPerSecond, reviewsAtOnce)
	}
	return r.addresses[address]
}
