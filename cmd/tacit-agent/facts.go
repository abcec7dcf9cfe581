package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/deploy/facts"
)

// factsCommand is how tacit check looks at a node: it runs this in the agent's
// pod.
func factsCommand(o *options) *cobra.Command {
	stay := false
	cmd := &cobra.Command{
		Use:   "facts [--cni-conf-dir DIR]",
		Short: "Prints what this node can do, as JSON",
		Long: `facts prints what tacit check wants to know of a node, as JSON: its clock, what
its kernel has and refuses, how full its tables are, and which CNI plugins are
in use. It changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if stay {
				<-cmd.Context().Done()
				return nil
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(facts.Look(cmd.Context(), o.cniConfDir))
		},
	}
	cmd.Flags().BoolVar(&stay, "stay", false, "print nothing and wait to be ended, so that others can be run beside it")
	return cmd
}
