package pods

import (
	"context"
	"fmt"
	"reflect"
)

// announce tells peers whether the pod is captured.
func (w *worker) announce(ctx context.Context, p Pod, captured bool) error {
	if w.set.cfg.Announce == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	if err := w.set.cfg.Announce(ctx, p, captured); err != nil {
		return fmt.Errorf("tell peers whether the pod is captured: %w", err)
	}
	return nil
}

// retell tells the proxy that the pod's containers are others, or others are
// known: nothing in its namespace depends on them.
func (w *worker) retell(want wish) error {
	applied := w.applied
	if w.ns == nil || applied.pod.Composition.Equal(want.pod.Composition) {
		return nil
	}
	if applied.pod.Composition = want.pod.Composition; !reflect.DeepEqual(applied, want) {
		return nil
	}
	if err := w.set.cfg.Sockets.Add(want.pod.Pod, w.ns); err != nil {
		return fmt.Errorf("make listeners: %w", err)
	}
	w.applied = want
	return nil
}
