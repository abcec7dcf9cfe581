package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tacit-mesh/tacit/redirect/pods"
)

// Redirection, on a pod, tells the control plane and with it all peers that
// the pod is captured ([Redirected]). Nothing else writes it.
const (
	Redirection = "tacit.mesh/redirection"
	Redirected  = "enabled"
)

// catchUp is how long the API's own word may lag behind what it was told.
const catchUp = 10 * time.Second

// announcement is what the API was last told of a pod.
type announcement struct {
	captured bool
	at       time.Time
}

// Announce is for [pods.Config].Announce: it writes the pod's annotation where
// the API does not have it that way.
func (s *Source) Announce(ctx context.Context, p pods.Pod, captured bool) error {
	cached, err := s.pods.Pods(p.Namespace).Get(p.Name)
	if apierrors.IsNotFound(err) || err == nil && string(cached.UID) != p.UID {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pod in the cache: %w", err)
	}
	s.mu.Lock()
	last := s.announced[p.UID]
	s.mu.Unlock()
	if known(cached, last) == captured {
		return nil
	}
	if err := s.annotate(ctx, p, captured); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announced[p.UID] = announcement{captured, time.Now()}
	return nil
}

// known is what peers hear of a pod: what we have just said, then what the
// API's watch says.
func known(p *corev1.Pod, last announcement) bool {
	if time.Since(last.at) < catchUp {
		return last.captured
	}
	return p.Annotations[Redirection] == Redirected
}

// annotate patches the status, which the agent may, and not the pod, which it
// may not. A pod that has been replaced by another one of its name is left
// alone.
func (s *Source) annotate(ctx context.Context, p pods.Pod, captured bool) error {
	var value any
	if captured {
		value = Redirected
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": p.UID, "annotations": map[string]any{Redirection: value},
	}})
	if err != nil {
		return fmt.Errorf("annotation of the pod: %w", err)
	}
	_, err = s.cfg.Client.Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return explain(err, "patch", "pods/status")
}

// Withdraw takes the annotation from all pods of the node, for good. It does
// not need Run.
func (s *Source) Withdraw(ctx context.Context) error {
	all, err := s.cfg.Client.Pods("").List(ctx, s.onThisNode())
	if err != nil {
		return fmt.Errorf("pods of the node: %w", explain(err, "list", "pods"))
	}
	var errs []error
	for i := range all.Items {
		if p := &all.Items[i]; p.Annotations[Redirection] != "" {
			errs = append(errs, s.annotate(ctx, s.cfg.Reader.Read(p, &corev1.Namespace{}), false))
		}
	}
	return errors.Join(errs...)
}

// explain says of a refusal what to change.
func explain(err error, verb, resource string) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	return fmt.Errorf("the agent's service account may not %s %s; add that to its ClusterRole: %w", verb, resource, err)
}
