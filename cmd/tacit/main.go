// Command tacit is what people have of a mesh: what it does and why, asked of its
// proxies, and what installs, changes and measures it.
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
	"github.com/tacit-mesh/tacit/internal/version"
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
	explainArgs(root)
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
		Short: "See, explain and look after a Tacit mesh",
		Long: `tacit says what a mesh does and why, and installs, changes and measures one.

Questions change nothing. They go to the proxy of this node, over its admin
socket; or to those of a cluster's nodes, by running tacit in their pods, for
which it takes a kubeconfig and the right to create pods/exec in Tacit's
namespace; or with --demo to those of a demo of this machine.`,
		Example: `  tacit status
  tacit explain --from shop/frontend --to shop/backend:8080
  tacit explain 4bf92f3577b34da6a3ce929d0e0e4736
  tacit connections --denied
  tacit tap --outcome denied`,
	}
	root.AddCommand(statusCommand(), connectionsCommand(), flowsCommand(), tapCommand(), coverageCommand(), replayCommand(), certsCommand(), explainCommand(), dumpCommand(), askCommand(), lintCommand(), auditCommand(), versionCommand(), exitHelp())
	root.AddCommand(clusterCommands()...)
	group(root)
	return cli.Prepare(root)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "tacit version", version.String())
			return err
		},
	}
}
