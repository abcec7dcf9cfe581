package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
)

// RemoveTaint takes the taint, with which a node may start so that no pod
// comes before the agent, off the node once ready says so.
func RemoveTaint(ctx context.Context, client nodeapi.Client, node, taint string, ready func() bool, log *zap.Logger) error {
	const first, last = 200 * time.Millisecond, 10 * time.Second
	backoff := wait.Backoff{Duration: first, Cap: last, Factor: 2, Steps: 10}
	err := wait.PollUntilContextCancel(ctx, first, true, func(context.Context) (bool, error) { return ready(), nil })
	for err == nil {
		if err = removeTaint(ctx, client, node, taint); err == nil {
			return nil
		}
		log.Error("the node keeps its taint for now", zap.String("taint", taint), zap.Error(err))
		select {
		case <-time.After(backoff.Step()):
			err = nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return err
}

func removeTaint(ctx context.Context, client nodeapi.Client, name, taint string) error {
	node, err := client.Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("node %s: %w", name, explain(err, "get", "nodes"))
	}
	others := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool { return t.Key == taint })
	if len(others) == len(node.Spec.Taints) {
		return nil
	}
	// The version makes sure that no taint of others gets lost.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": others},
	})
	if err != nil {
		return fmt.Errorf("taints of node %s: %w", name, err)
	}
	_, err = client.Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("taints of node %s: %w", name, explain(err, "patch", "nodes"))
	}
	return nil
}
