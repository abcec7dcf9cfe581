//go:build !inpod

package main

import "github.com/spf13/cobra"

// clusterCommands are those of a person's machine.
func clusterCommands() []*cobra.Command {
	return []*cobra.Command{caCommand(), uiCommand(), topCommand(), supportCommand(), checkCommand(), installCommand(), upgradeCommand(), uninstallCommand(), identityCommand(), bypassCommand(), newDemoCommand(), benchCommand(), manCommand()}
}
