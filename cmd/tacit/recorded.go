//go:build !inpod

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/records"
	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/test/demo"
)

// recorded is where the flags say that records of a kind are.
type recorded[T any] struct {
	from    string
	demo    bool
	cluster cluster.Flags
	kind    records.Kind[T]
	// everywhere: not in Tacit's namespace alone, but in all of them, or in the
	// one that is meant.
	everywhere bool
	meant      string
	// connect is Flags.Connect but in tests.
	connect func() (*cluster.Cluster, error)
}

func (r *recorded[T]) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.from, "from", "", "`directory` of manifests that tacitd reads, where there is no Kubernetes")
	cmd.Flags().BoolVar(&r.demo, "demo", false, "that of a demo of this machine that was kept (tacit demo --keep)")
	cmd.MarkFlagsMutuallyExclusive("demo", "from")
	clusterFlags(cmd.Flags(), &r.cluster)
}

func (r *recorded[T]) open(cmd *cobra.Command) (records.Store[T], error) {
	if r.demo {
		kept, err := keptDemo()
		if err != nil {
			return nil, err
		}
		// Reading follows links by their text, which those of /proc do not have.
		if err := os.Chdir(kept.path(demo.Manifests)); err != nil {
			return nil, fmt.Errorf("manifests of the demo: %w", err)
		}
		return records.Dir[T]{Path: ".", Kind: r.kind}, nil
	}
	if r.from != "" {
		if cmd.Flag("kubeconfig").Changed || cmd.Flag("context").Changed {
			return nil, errors.New("--from is about a directory of manifests, --kubeconfig and --context about a cluster: give one or the other")
		}
		return records.Dir[T]{Path: r.from, Kind: r.kind}, nil
	}
	connect := r.connect
	if connect == nil {
		connect = r.cluster.Connect
	}
	c, err := connect()
	if errors.Is(err, cluster.ErrNoKubeconfig) {
		return nil, fmt.Errorf("%w; without Kubernetes, name the directory of manifests with --from", err)
	}
	if err != nil {
		return nil, err
	}
	in := c.Namespace
	if r.everywhere {
		in = r.meant
	}
	return records.Cluster[T]{Cluster: c, Kind: r.kind, In: in}, nil
}

// with calls do with the records that the flags mean, for no longer than the
// timeout.
func (r *recorded[T]) with(cmd *cobra.Command, do func(context.Context, records.Store[T]) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	s, err := r.open(cmd)
	if err != nil {
		return err
	}
	return do(ctx, s)
}

// listCommand lists the records; name is that of the list for programs.
func (r *recorded[T]) listCommand(short, name string, write func(show.Printer, []*T) error) *cobra.Command {
	var in podsIn
	c := client{more: []string{outputWide}}
	cmd := &cobra.Command{
		Use:   "list",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(c.output, c.more...); err != nil {
				return err
			}
			r.meant = cmp.Or(strings.Join(args, ""), string(in))
			return r.with(cmd, func(ctx context.Context, s records.Store[T]) error {
				all, err := s.List(ctx)
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(one *T) bool { return r.meant != "" && r.kind.Object(one).GetNamespace() != r.meant })
				if forPrograms(c.output) {
					return printAs(cmd.OutOrStdout(), c.output, map[string]any{name: all})
				}
				return write(c.printer(cmd), all)
			})
		},
	}
	if r.everywhere {
		cmd.Use, cmd.Args = "list [NAMESPACE]", cobra.MaximumNArgs(1)
		cmd.Flags().StringVarP((*string)(&in), "namespace", "n", "", "the same as the argument: a `namespace`")
	}
	r.flags(cmd)
	outputFlag(cmd.Flags(), &c.output, c.more...)
	return cmd
}
