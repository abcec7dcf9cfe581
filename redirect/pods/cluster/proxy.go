package cluster

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/procs"
)

// proxyAccount is the service account of the proxy's pods.
const proxyAccount = "tacit-proxy"

// Await returns when pods and namespaces have been read.
func (s *Source) Await(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return ctx.Err()
	}
	return nil
}

// CheckProxy makes the check of who connects as the proxy: a process of a pod
// of the proxy's service account on this node, by the control group into which
// the container runtime has put it.
func (s *Source) CheckProxy(namespace string) func(groups string) error {
	return func(groups string) error {
		uid := procs.PodOf(groups)
		if uid == "" {
			return errors.New("it is in no pod, and so not the proxy")
		}
		all, err := s.pods.Pods(namespace).List(labels.Everything())
		if err != nil {
			return fmt.Errorf("pods of the node: %w", err)
		}
		for _, p := range all {
			if pods.RuntimeUID(p) == uid && p.Spec.ServiceAccountName == proxyAccount {
				return nil
			}
		}
		return fmt.Errorf("it is in a pod with UID %s, which is none of the service account %s/%s on this node", uid, namespace, proxyAccount)
	}
}
