package local

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
	"github.com/tacit-mesh/tacit/test/world"
)

// Command measures on this machine. Self are the words behind the program's name
// by which it is called.
func Command(use string, self ...string) (*cobra.Command, *suite.Flags) {
	own, _ := os.Executable() // "" makes relative paths, as good a guess
	f := new(suite.Flags)
	c := Config{Self: self}
	cmd := &cobra.Command{
		Use:   use,
		Short: "Measure what the mesh costs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.Options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if o.Paths.MatchString(suite.Envoy) {
				fetchEnvoy(cmd.Context(), cmd.ErrOrStderr())
			}
			world.Enter(func() int {
				r, err := Measure(cmd.Context(), c, o)
				if err == nil {
					err = f.Show(cmd.OutOrStdout(), r)
				}
				if err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.CommandPath(), err)
					return 1
				}
				return 0
			})
			return nil
		},
	}
	f.Add(cmd.Flags())
	cmd.Flags().StringVar(&c.Programs, "programs", filepath.Dir(own), "`directory` of tacitd, tacit-agent and tacit-proxy")
	cmd.Flags().BoolVar(&c.SplitCPUs, "split-cpus", false, "give each node CPUs of its own, as far as there are enough")
	cmd.Flags().StringVar(&c.Congestion, "congestion", "", "congestion `control` of all TCP, such as reno, in the place of the machine's own")
	cmd.Flags().BoolVar(&c.EncryptLocal, "encrypt-local", false, "let Tacit encrypt within a node as well")
	cmd.Flags().StringVar(&c.Ztunnel, "ztunnel", os.Getenv("TACIT_BENCH_ZTUNNEL"), "`file` of ztunnel, built with --features testing, to measure a pair of it as well")
	cmd.AddCommand(partCommands()...)
	return cmd, f
}

// partCommands are what pods run, and the comparison of two runs.
func partCommands() []*cobra.Command {
	serve := &cobra.Command{Use: "serve", Short: "Be the load's server", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return load.Serve(cmd.Context()) }}
	put := &cobra.Command{Use: "load CONFIGURATION", Short: "Be the load's client", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return load.Command(cmd.Context(), args[0], cmd.InOrStdin(), cmd.OutOrStdout())
		}}
	compare := &cobra.Command{Use: "compare BEFORE.json AFTER.json", Short: "Say what differs between two runs, beyond noise",
		Long: `Say what differs between two runs of the same machine, beyond noise. Each run
needs 9 rounds at least.

Exit status: 0 nothing of Tacit's has become worse, 1 something has.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return compare(cmd.OutOrStdout(), args[0], args[1])
		}}
	return []*cobra.Command{serve, put, compare}
}

// compare fails if anything of Tacit's has become worse.
func compare(out io.Writer, first, second string) error {
	before, err := report.Read(first)
	if err != nil {
		return err
	}
	after, err := report.Read(second)
	if err != nil {
		return err
	}
	differences, err := report.Compare(before, after)
	if err != nil {
		return err
	}
	report.PrintDifferences(out, differences)
	ours := func(d report.Difference) bool {
		return d.Worse() && slices.Contains(before.Paths, report.Path{Name: d.Path, Class: report.Tacit})
	}
	if slices.ContainsFunc(differences, ours) {
		return errors.New("beyond noise, Tacit has become worse")
	}
	return nil
}
