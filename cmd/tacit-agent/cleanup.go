package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

func cleanupCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup (--kubernetes --node NAME [--run-dir DIR --cni-bin-dir DIR --cni-conf-dir DIR] | --netns-dir DIR)",
		Short: "Takes away everything that tacit-agent ever made on this node",
		Long: `cleanup takes away everything that tacit-agent ever made in the node's network
namespace and in those of --netns-dir, and nothing else. With --kubernetes these
are the namespaces of all of the node's processes, and the pods' annotations, the
CNI plugin and the sockets' directories go, too. Connections that are captured break; to let pods go
without that, opt them out while the agent runs. The agent must have ended.`,
		Example: `  tacit-agent cleanup --netns-dir /run/netns`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			required := []string{"netns-dir"}
			if o.kubernetes {
				required = []string{"node"}
			}
			if err := cli.Check(cmd, required); err != nil {
				return err
			}
			return o.cleanup(cmd.Context())
		},
	}
}

// cleanup goes on after errors: what can be taken away is.
func (o *options) cleanup(ctx context.Context) error {
	var errs []error
	if o.kubernetes {
		errs = append(errs, o.leaveCluster(ctx))
	}
	paths, err := o.namespaces()
	errs = append(errs, err)
	for _, path := range append(paths, netns.Own) {
		err := pods.Cleanup(ctx, path)
		// A file may be left of a namespace that is gone, and a process may
		// end meanwhile.
		if !errors.Is(err, netns.ErrNotNamespace) && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// leaveCluster tells peers and the container runtime before anything goes.
func (o *options) leaveCluster(ctx context.Context) error {
	node, err := o.cluster(logger())
	if err != nil {
		return err
	}
	if node.installer != nil {
		err = node.installer.Uninstall()
	}
	if o.runDir != "" {
		err = errors.Join(err, os.RemoveAll(o.runDir))
	}
	err = errors.Join(err, os.RemoveAll(filepath.Dir(o.cniSocket)), node.source.Withdraw(ctx))
	// What both are in goes if nothing else is in it.
	_ = os.Remove(filepath.Dir(filepath.Dir(o.cniSocket)))
	return err
}

func (o *options) namespaces() ([]string, error) {
	if o.kubernetes {
		return o.locator().Namespaces()
	}
	entries, err := os.ReadDir(o.netnsDir)
	if err != nil {
		return nil, fmt.Errorf("cleanup: %w", err)
	}
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(o.netnsDir, e.Name()))
	}
	return paths, nil
}
