package cluster

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/redirect/cni"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// Enroller answers the CNI plugin: it is a [cni.Agent].
type Enroller struct {
	Source  *Source
	Set     *pods.Set
	Locator *pods.Locator
	Log     *zap.Logger
}

// Add implements [cni.Agent].
func (e *Enroller) Add(ctx context.Context, a cni.Attachment) (enrolled bool, err error) {
	id := netns.ID{Dev: a.NetNSDevice, Inode: a.NetNSInode}
	path, err := e.Locator.OnNode(a.NetNS, id)
	if err != nil {
		e.Log.Warn("the pod's network namespace is looked for among its processes", zap.Error(err))
	}
	pod, err := e.Source.Enrol(ctx, Sandbox{
		Namespace: a.Namespace, Name: a.Pod, UID: a.UID, Container: a.Container, NetNS: path, Addresses: a.Addresses,
	})
	switch {
	case errors.Is(err, ErrNotReady):
		return false, fmt.Errorf("%w: %w", cni.ErrNotReady, err)
	case err != nil:
		return true, err
	case !pod.Capture:
		return false, nil
	}
	return true, e.Set.AwaitCapture(ctx, pod.UID, id)
}

// Check implements [cni.Agent].
func (e *Enroller) Check(ctx context.Context, a cni.Attachment) (enrolled bool, err error) {
	id := netns.ID{Dev: a.NetNSDevice, Inode: a.NetNSInode}
	for _, s := range e.Set.Status() {
		if s.Pod.RuntimeUID != a.UID {
			continue
		}
		if s.Pod.Capture && (s.State != pods.StateCaptured || s.NetNS != id) {
			return true, errors.Join(fmt.Errorf("the pod is %s", s.State), s.Err, ctx.Err())
		}
		return s.Pod.Capture, nil
	}
	return false, nil
}

// Del implements [cni.Agent].
func (e *Enroller) Del(a cni.Attachment) { e.Source.Leave(a.Container) }
