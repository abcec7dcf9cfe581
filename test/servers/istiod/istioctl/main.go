// Command istioctl is what istioctl has for ztunnel alone: ztunnel-config, from
// Istio's own package of it.
package main

import (
	"os"

	"istio.io/istio/istioctl/pkg/cli"
	"istio.io/istio/istioctl/pkg/ztunnelconfig"
)

func main() {
	if ztunnelconfig.ZtunnelConfig(cli.NewCLIContext(nil)).Execute() != nil {
		os.Exit(1)
	}
}
