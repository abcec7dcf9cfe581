// Command tacit-cni is a chained CNI plugin: it lets the first container of a
// pod of the mesh start only when tacit-agent has captured the pod.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	tacitversion "github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/redirect/cni"
	"github.com/tacit-mesh/tacit/redirect/cni/plugin"
)

func main() {
	binary, err := os.Executable()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: where am I? %v\n", cni.Type, err)
		os.Exit(1)
	}
	p := plugin.Plugin{BinDir: filepath.Dir(binary)}
	skel.PluginMainFuncs(p.Funcs(), version.All, cni.Type+" "+tacitversion.String())
}
