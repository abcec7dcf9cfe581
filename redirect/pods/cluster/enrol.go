package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/redirect/pods"
)

// Sandbox is what the CNI plugin says of a pod that is being made.
type Sandbox struct {
	Namespace, Name string
	UID             string // by which the container runtime knows the pod
	Container       string // by which it knows the sandbox
	NetNS           string // path of its network namespace
	Addresses       []netip.Addr
}

// describe says of a pod where it is. What the kubelet says of its addresses comes
// later, and stays that of a sandbox before until this one is ready, which waits
// for the pod to be captured.
func (s Sandbox) describe(pod *pods.Pod) {
	pod.NetNS = s.NetNS
	of := func(a netip.Addr) bool { return slices.Contains(s.Addresses, a) }
	if len(pod.Addresses) == 0 || len(s.Addresses) > 0 && !slices.ContainsFunc(pod.Addresses, of) {
		pod.Addresses = s.Addresses
	}
}

// ErrNotReady says that the source does not know yet which pods there are.
var ErrNotReady = errors.New("the pods of the node have not been read from the API yet")

// Enrol hears of a sandbox and says whether its pod is to be captured. If so,
// the list says so, too, when it returns.
func (s *Source) Enrol(ctx context.Context, sandbox Sandbox) (pod pods.Pod, err error) {
	if !s.Ready() {
		return pods.Pod{}, ErrNotReady
	}
	p, err := s.lookUp(ctx, sandbox)
	if err != nil || p == nil {
		return pods.Pod{}, err
	}
	if pod = s.describe(p); !pod.Capture || !s.cfg.Reader.Here(p) {
		s.forget(pod.RuntimeUID)
		return pods.Pod{}, nil
	}
	for {
		s.mu.Lock()
		arrived := s.arrived
		listed := s.cached(sandbox) != nil
		if listed {
			s.sandboxes[pod.RuntimeUID] = sandbox
		}
		s.mu.Unlock()
		if listed {
			s.kick()
			return pod, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return pods.Pod{}, fmt.Errorf("%w before the API's watch told the agent of the pod", ctx.Err())
		}
	}
}

// forget is for a pod that has another sandbox and is not to be captured for now:
// later it would be looked for in the one before.
func (s *Source) forget(runtimeUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, runtimeUID)
	s.kick()
}

// Leave forgets a sandbox. Its pod may have another one by now.
func (s *Source) Leave(container string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.sandboxes, func(_ string, other Sandbox) bool { return other.Container == container })
	s.kick()
}

// cached is the pod as the watch has told, nil if it has not.
func (s *Source) cached(sandbox Sandbox) *corev1.Pod {
	p, err := s.pods.Pods(sandbox.Namespace).Get(sandbox.Name)
	if err != nil || !isOf(p, sandbox) {
		return nil
	}
	return p
}

// lookUp asks the API itself if the watch is behind: a pod that is not
// enrolled must not wait for it. Nil means that there is no such pod anymore.
func (s *Source) lookUp(ctx context.Context, sandbox Sandbox) (*corev1.Pod, error) {
	if p := s.cached(sandbox); p != nil {
		return p, nil
	}
	p, err := s.cfg.Client.Pods(sandbox.Namespace).Get(ctx, sandbox.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && !isOf(p, sandbox) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, explain(err, "get", "pods"))
	}
	return p, nil
}

// isOf compares UIDs where the runtime tells one: some old ones do not.
func isOf(p *corev1.Pod, sandbox Sandbox) bool {
	return sandbox.UID == "" || pods.RuntimeUID(p) == sandbox.UID
}
