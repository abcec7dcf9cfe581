//go:build !inpod

package main

import (
	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/deploy/check"
	"github.com/tacit-mesh/tacit/deploy/cluster"
)

func checkCommand() *cobra.Command {
	var (
		f      cluster.Flags
		output string
		all    bool
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is in the way of Tacit on a cluster, and what to do about it",
		Long: `Look at a cluster, before Tacit is installed and after, and change nothing:
versions, settings of the cluster's CNI, NetworkPolicies that drop the mesh's
port, other meshes, and whether you may install. Once it is installed also the
nodes from inside (kernel, iptables, CNI configuration, SELinux, limits,
clocks), certificates, and pods that are opted in and not captured.

Each finding is broken (it does not work, or will not), risky, unknown (it
could not be looked at) or fine, and says what to do.

Exit status: 0 nothing is broken, 3 something is, 1 the cluster says nothing.`,
		Example: `  tacit check
  tacit check --all                 # also what is fine
  tacit check -o json | jq '.findings[] | select(.level == "broken")'`,
		Args: cobra.NoArgs,
	}
	clusterFlags(cmd.Flags(), &f)
	outputFlag(cmd.Flags(), &output)
	cmd.Flags().BoolVar(&all, "all", false, "show what is fine, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		c, err := f.Connect()
		if err != nil {
			return err
		}
		report, err := check.Run(cmd.Context(), c)
		if err != nil {
			return err
		}
		if forPrograms(output) {
			err = printAs(cmd.OutOrStdout(), output, report)
		} else {
			err = report.Print(cmd.OutOrStdout(), all)
		}
		if err == nil && report.Worst() == check.Broken {
			err = exitError(exitFound)
		}
		return err
	}
	return cmd
}
