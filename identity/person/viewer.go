package person

import (
	"context"
	"sync"
	"time"

	authorization "k8s.io/api/authorization/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Bounds on what is remembered of what a person may see.
const (
	answerLife = time.Minute
	maxAnswers = 4096
)

// viewer may see the namespaces whose pods they may list.
type viewer struct {
	client kubernetes.Interface
	user   authorization.SubjectAccessReviewSpec

	mu      sync.Mutex
	answers map[string]reviewed
}

type reviewed struct {
	allowed bool
	at      time.Time
}

// Sees implements page.Viewer. What cannot be found out is not seen.
func (v *viewer) Sees(ctx context.Context, namespace string) bool {
	if namespace != "" && v.ask(ctx, "") {
		return true
	}
	return v.ask(ctx, namespace)
}

func (v *viewer) ask(ctx context.Context, namespace string) bool {
	now := time.Now()
	v.mu.Lock()
	known, ok := v.answers[namespace]
	v.mu.Unlock()
	if ok && now.Sub(known.at) < answerLife {
		return known.allowed
	}
	spec := v.user
	spec.ResourceAttributes = &authorization.ResourceAttributes{Namespace: namespace, Verb: "list", Resource: "pods"}
	review, err := v.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorization.SubjectAccessReview{Spec: spec}, meta.CreateOptions{})
	if err != nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.answers == nil || len(v.answers) >= maxAnswers {
		v.answers = map[string]reviewed{}
	}
	allowed := review.Status.Allowed && !review.Status.Denied
	v.answers[namespace] = reviewed{allowed, now}
	return allowed
}
