package kube

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"

	"github.com/tacit-mesh/tacit/xds/build"
)

// EnforcedCondition is the type of the condition that says whether a policy is
// enforced. It is true only if all of the policy is, wherever it applies.
const EnforcedCondition = "tacit.mesh/Enforced"

// Reasons of the condition.
const (
	reasonEnforced = "Enforced"
	reasonInPart   = "EnforcedInPart"
	reasonNot      = "NotEnforced"
)

const (
	// Writes to the API, all policies together.
	writesPerSecond = 10
	writesAtOnce    = 20
	// What could not be written, and what others changed, is looked at again
	// after this long.
	lookAgain    = 30 * time.Second
	writeTimeout = 10 * time.Second
	maxMessage   = 8 << 10 // bytes
)

// Statuses writes the statuses of policies to the cluster.
type Statuses struct {
	source *Source
	log    *zap.Logger
	wake   chan struct{}
	limit  *rate.Limiter

	mu     sync.Mutex
	wanted []build.PolicyStatus
}

// Statuses prepares to write statuses of the source's policies.
func (s *Source) Statuses() *Statuses {
	return &Statuses{source: s, log: s.Log, wake: make(chan struct{}, 1), limit: rate.NewLimiter(writesPerSecond, writesAtOnce)}
}

// Set says what the statuses are now. It does not wait for the API.
func (s *Statuses) Set(statuses []build.PolicyStatus) {
	s.mu.Lock()
	s.wanted = statuses
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes what differs from what the cluster has until the context ends; it
// returns the context's error. One replica at a time should run it.
func (s *Statuses) Run(ctx context.Context) error {
	for {
		s.mu.Lock()
		wanted := s.wanted
		s.mu.Unlock()
		for i := range wanted {
			if err := s.bring(ctx, &wanted[i]); err != nil && ctx.Err() == nil {
				s.log.Warn("status of a policy not written; it will be tried again", zap.String("kind", wanted[i].Kind),
					zap.String("namespace", wanted[i].Namespace), zap.String("name", wanted[i].Name), zap.Error(err))
			}
		}
		select {
		case <-s.wake:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bring writes the condition of one policy if the cluster has another one.
func (s *Statuses) bring(ctx context.Context, st *build.PolicyStatus) error {
	resource, cached := s.source.policy(st.Kind, st.Namespace, st.Name)
	if cached == nil || !update(cached.DeepCopy(), st) {
		return nil
	}
	if err := s.limit.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	client := s.source.Dynamic.Resource(resource).Namespace(st.Namespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		// What is in the cache may be old, and others' conditions with it.
		now, err := client.Get(ctx, st.Name, metav1.GetOptions{})
		if err != nil || now.GetUID() != cached.GetUID() || !update(now, st) {
			return err
		}
		_, err = client.UpdateStatus(ctx, now, metav1.UpdateOptions{})
		return err
	})
	switch {
	case apierrors.IsNotFound(err):
		return nil // gone meanwhile
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: grant tacitd's ServiceAccount the verb get on %s and update on %s/status of %s, or run it with --no-status",
			err, resource.Resource, resource.Resource, resource.Group)
	}
	return err
}

// update sets the condition, leaves all others as they are, and reports
// whether that changed anything.
func update(u *unstructured.Unstructured, st *build.PolicyStatus) bool {
	want := condition(st)
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	at := slices.IndexFunc(list, func(c any) bool {
		have, ok := c.(map[string]any)
		return ok && have["type"] == EnforcedCondition
	})
	if at >= 0 {
		have := list[at].(map[string]any)
		if have["status"] == want["status"] && have["lastTransitionTime"] != nil {
			want["lastTransitionTime"] = have["lastTransitionTime"]
		}
		if reflect.DeepEqual(have, want) {
			return false
		}
		list[at] = want
	} else {
		list = append(list, want)
	}
	return unstructured.SetNestedSlice(u.Object, list, "status", "conditions") == nil
}

// condition is what the cluster is told of a policy.
func condition(st *build.PolicyStatus) map[string]any {
	status, reason, message := metav1.ConditionTrue, reasonEnforced, "enforced at "+st.Layer
	switch {
	case !st.Enforced:
		status, reason, message = metav1.ConditionFalse, reasonNot, "not enforced"
	case len(st.Messages) > 0:
		status, reason, message = metav1.ConditionFalse, reasonInPart, message+", but not everywhere as written"
	}
	if len(st.Messages) > 0 {
		message += ": " + strings.Join(st.Messages, "; ")
	}
	if len(st.Findings) > 0 {
		message += "; doubtful: " + strings.Join(st.Findings, "; ")
	}
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
	}
	return map[string]any{
		"type": EnforcedCondition, "status": string(status), "reason": reason, "message": message,
		"lastTransitionTime": metav1.Now().UTC().Format(time.RFC3339), "observedGeneration": st.Generation,
	}
}
