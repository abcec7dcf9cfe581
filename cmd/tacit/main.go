// Command tacit looks into a running mesh from the proxy of one node: what it
// serves, which connections there are, and why one is or is not allowed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[0], os.Args[1:], os.Stdout, os.Stderr))
}

// run runs a command line and returns what to exit with; name is what the program
// was called as.
func run(ctx context.Context, name string, args []string, out, errOut io.Writer) int {
	root := command()
	if filepath.Base(name) == "kubectl-tacit" { // how kubectl finds its plugins
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl tacit"}
	}
	root.SetArgs(args)
	return execute(ctx, root, out, errOut)
}

// execute runs a command and returns what to exit with.
func execute(ctx context.Context, root *cobra.Command, out, errOut io.Writer) int {
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var (
		code exitError
		lack partialError
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(errOut, "tacit:", err)
	if errors.As(err, &lack) {
		return exitPartial
	}
	return exitFailed
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "tacit",
		Short: "Look into a running Tacit mesh",
		Long: `tacit asks proxies what they know and do, and changes nothing: the one of this
node, over its admin socket, or those of a cluster's nodes, by running itself
in their pods. For that it takes a kubeconfig and the right to create pods/exec
in Tacit's namespace.`,
		Example: `  tacit status
  tacit explain --from shop/frontend --to shop/backend:8080
  tacit explain 4bf92f3577b34da6a3ce929d0e0e4736
  tacit connections --denied
  tacit tap --outcome denied`,
	}
	root.AddCommand(statusCommand(), connectionsCommand(), flowsCommand(), tapCommand(), coverageCommand(), replayCommand(), certsCommand(), explainCommand(), dumpCommand(), askCommand(), lintCommand(), auditCommand(), exitHelp())
	root.AddCommand(clusterCommands()...)
	return cli.Prepare(root)
}
