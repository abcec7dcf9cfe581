package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/lint"
	"github.com/tacit-mesh/tacit/xds/meshconfig"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

func lintCommand() *cobra.Command {
	var (
		config   string
		settings build.Settings
	)
	cmd := &cobra.Command{
		Use:   "lint FILE...",
		Short: "Find policies that mean something else than was probably wanted",
		Long: `Read manifests, of files or whole directories, and say of each policy what in
it does something else than was probably meant, and what cannot be enforced.
With the pods and services among the manifests, what is about them is checked
as well. Nothing is asked of a cluster. The exit status is 3 if there is
anything to say.`,
		Example: `  tacit lint policies.yaml
  kubectl get authorizationpolicies,peerauthentications,pods,services -A -o yaml | tacit lint /dev/stdin`,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVar(&settings.RootNamespace, "root-namespace", build.DefaultRootNamespace, "`namespace` whose policies cover the whole mesh")
	cmd.Flags().StringVar(&config, "mesh-config", "", "`file` of tacitd --mesh-config (of a cluster, what is in the ConfigMap tacit-mesh), for the providers that policies name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := meshconfig.Read(config, &settings, noFile); err != nil {
			return err
		}
		objects, errs := files.Read(args...)
		lines := 0
		say := func(line any) {
			lines++
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		for _, err := range errs {
			say(err)
		}
		alone := *objects
		alone.Pods = nil // whether they are captured, manifests do not say
		for _, s := range build.Build(settings, alone).Statuses {
			for _, message := range s.Messages {
				if message != build.NobodySelected {
					say(fmt.Sprintf("%s %s/%s: %s", s.Kind, s.Namespace, s.Name, message))
				}
			}
		}
		for _, f := range lint.Check(objects, settings) {
			say(f)
		}
		if lines > 0 {
			return exitError(exitFound)
		}
		return nil
	}
	return cmd
}

// noFile stands in for the certificates that a mesh's configuration names: here
// nobody is called.
func noFile(string) ([]byte, error) { return nil, nil }
