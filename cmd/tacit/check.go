//go:build !inpod

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/deploy/check"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/deploy/install"
)

func checkCommand() *cobra.Command {
	var (
		f      cluster.Flags
		output string
		all    bool
		nodes  bool
		o      install.Options
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is in the way of Tacit on a cluster, and what to do about it",
		Long: `Look at a cluster, before Tacit is installed and after, and change nothing:
versions, settings of the cluster's CNI, NetworkPolicies that drop the mesh's
port, other meshes, and whether you may install. Once it is installed also the
nodes from inside (kernel, iptables, CNI configuration, SELinux, limits,
clocks), certificates, and pods that are opted in and not captured.

With --nodes the nodes are looked at from inside before Tacit is installed, too:
by a pod of the agent's image on each of them, as the values say that you will
install with. It has the capabilities to try rules in a network namespace of its
own, changes nothing of its node, and is taken away again; so is the namespace, if
there was none.

Each finding is broken (it does not work, or will not), risky, unknown (it
could not be looked at) or fine, and says what to do.

Exit status: 0 nothing is broken, 3 something is, 1 the cluster says nothing, or
not all nodes could be looked at.`,
		Example: `  tacit check
  tacit check --all                 # also what is fine
  tacit check --nodes --preset gke --set image.registry=registry.example.com/mesh
  tacit check -o json | jq '.findings[] | select(.level == "broken")'`,
		Args: cobra.NoArgs,
	}
	releaseFlags(cmd.Flags(), &f)
	outputFlag(cmd.Flags(), &output)
	cmd.Flags().BoolVar(&all, "all", false, "show what is fine, too")
	cmd.Flags().BoolVar(&nodes, "nodes", false, "before there are agents, look at the nodes from pods that are made for that")
	valueFlags(cmd.Flags(), &o)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		if !nodes && (o.Preset != "" || o.Files != nil || o.Set != nil) {
			return errors.New("--preset, --values and --set say what pods of --nodes are like: give that, too")
		}
		c, err := f.Connect()
		if err != nil {
			return err
		}
		var report check.Report
		look := func(ctx context.Context) (err error) {
			report, err = check.Run(ctx, c)
			return err
		}
		if nodes {
			o.Out, o.Width = cmd.ErrOrStderr(), terminalWidth(cmd.ErrOrStderr())
			err = install.WithScouts(cmd.Context(), c, o, look)
		} else {
			err = look(cmd.Context())
		}
		if report.Findings == nil {
			return err
		}
		if forPrograms(output) {
			err = errors.Join(err, printAs(cmd.OutOrStdout(), output, report))
		} else {
			err = errors.Join(err, report.Print(cmd.OutOrStdout(), all))
		}
		if err == nil && report.Worst() == check.Broken {
			err = exitError(exitFound)
		}
		return err
	}
	return cmd
}
