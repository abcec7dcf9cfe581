//go:build !inpod

package main

import (
	"context"

	"github.com/spf13/cobra"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pods are those of the cluster that the flags mean, for a shell to offer: of
// none if there is something wrong.
func (r *recorded[T]) pods(ctx context.Context, _ *cobra.Command) (names []string) {
	connect := r.connect
	if connect == nil {
		connect = r.cluster.Connect
	}
	c, err := connect()
	if err != nil {
		return nil
	}
	list, err := c.Client.CoreV1().Pods("").List(ctx, meta.ListOptions{})
	if err != nil {
		return nil
	}
	for i := range list.Items {
		names = append(names, list.Items[i].Namespace+"/"+list.Items[i].Name)
	}
	return names
}
