package cluster

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// known are the bypasses of the cluster.
func (s *Source) known() pods.Bypasses {
	b := pods.Bypasses{Limit: s.cfg.MaxBypass}
	for _, o := range s.bypasses.List() {
		b.All = append(b.All, o.(*bypass.Bypass))
	}
	return b
}

// optional is a kind of which a cluster that does not know it has none.
type optional struct{ nodeapi.Follow[*bypass.List] }

// List implements [nodeapi.Follow].
func (o optional) List(ctx context.Context, options metav1.ListOptions) (*bypass.List, error) {
	list, err := o.Follow.List(ctx, options)
	if apierrors.IsNotFound(err) {
		return &bypass.List{}, nil
	}
	return list, err
}
