// Command istioctl is what istioctl has for ztunnel alone: ztunnel-config, from
// Istio's own package of it.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"istio.io/istio/istioctl/pkg/cli"
	"istio.io/istio/istioctl/pkg/ztunnelconfig"
)

func main() {
	root := &cobra.Command{Use: "istioctl"}
	root.AddCommand(ztunnelconfig.ZtunnelConfig(cli.NewCLIContext(cli.AddRootFlags(root.PersistentFlags()))))
	if root.Execute() != nil {
		os.Exit(1)
	}
}
