package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionTimeout bounds how long a shell waits for names.
const completionTimeout = 5 * time.Second

// podNames offers names of pods for what is begun, namespaces first; names lists
// the pods that there are, as NAMESPACE/POD.
func podNames(names func(context.Context, *cobra.Command) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		offered := map[string]bool{}
		in := cmd.Flag("namespace").Value.String()
		inside := in != "" || strings.Contains(begun, "/")
		for _, name := range names(ctx, cmd) {
			namespace, pod, _ := strings.Cut(name, "/")
			switch {
			case in != "" && namespace == in:
				name = pod
			case !inside:
				name = namespace + "/"
			}
			if strings.HasPrefix(name, begun) {
				offered[name] = true
			}
		}
		directive := cobra.ShellCompDirectiveNoFileComp
		if !inside {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return slices.Sorted(maps.Keys(offered)), directive
	}
}

// completeEnds has flags completed with pods of the mesh.
func (c *client) completeEnds(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		_ = cmd.RegisterFlagCompletionFunc(name, func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
			return podNames(c.podsOfMesh)(cmd, nil, begun)
		})
	}
}

// podsOfMesh are those that a proxy knows. A shell shows no errors, so nothing is
// offered where there is one.
func (c *client) podsOfMesh(ctx context.Context, cmd *cobra.Command) (names []string) {
	all, err := c.proxies(cmd, about{one: true})
	if err != nil {
		return nil
	}
	body, err := all[0].ask(ctx, "/dump", nil)
	if err != nil {
		return nil
	}
	defer body.Close()
	var mesh struct {
		Workloads []struct{ Namespace, Name string }
	}
	if all[0].read(body, &mesh) != nil {
		return nil
	}
	for _, w := range mesh.Workloads {
		names = append(names, w.Namespace+"/"+w.Name)
	}
	return names
}
