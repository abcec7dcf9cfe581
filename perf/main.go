// Command perf is tacit bench on its own, on this machine alone: it is built
// faster, for whoever works on what it measures. The README beside this file says
// what was found and why.
package main

import (
	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/perf/local"
)

func main() {
	cmd, _ := local.Command("perf")
	cli.Main(cmd)
}
