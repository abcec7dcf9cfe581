//go:build !inpod

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/deploy/install"
)

// clusterFlags adds those that say which cluster, and where Tacit is in it. -n is
// left to the pods that a command is about.
func clusterFlags(flags *pflag.FlagSet, f *cluster.Flags) {
	flags.StringVar(&f.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the cluster; as kubectl does if empty")
	flags.StringVar(&f.Context, "context", "", "`name` of a context in the kubeconfig; the current one if empty")
	flags.StringVar(&f.Namespace, "tacit-namespace", deploy.Namespace, "`namespace` that Tacit is in")
}

// releaseFlags are clusterFlags of what is about Tacit alone, and no pods: there -n
// says where that is, as Helm's does.
func releaseFlags(flags *pflag.FlagSet, f *cluster.Flags) {
	clusterFlags(flags, f)
	flags.StringVarP(&f.Namespace, "namespace", "n", deploy.Namespace, "the same as --tacit-namespace: a `namespace`")
}

// valueFlags adds those that choose values of the chart.
func valueFlags(flags *pflag.FlagSet, o *install.Options) {
	flags.StringVar(&o.Preset, "preset", "", "`platform` whose directories and settings to take: "+strings.Join(deploy.Presets(), ", "))
	flags.StringArrayVarP(&o.Files, "values", "f", nil, "`file` of values, over the preset's; may be given several times")
	flags.StringArrayVar(&o.Set, "set", nil, "single `value` over all files, such as proxy.drainSeconds=60; may be given several times")
	flags.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "how long to wait until all is ready; 0: do not wait")
}

func installCommand() *cobra.Command {
	var (
		f      cluster.Flags
		o      install.Options
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put Tacit on a cluster",
		Long: `Put Tacit on a cluster: the control plane, and an agent and a proxy on each
node. No pod is in the mesh until its namespace or itself has the label
tacit.mesh/dataplane=enabled.

It is the Helm chart that is built in, so Helm knows the release, too. The
kinds of security.istio.io are installed where they are absent; those of Istio
are left alone.

Exit status: 0 all is ready, 1 it is not, or nothing was done.`,
		Example: `  tacit check && tacit install
  tacit install --preset gke --set image.registry=registry.example.com/mesh
  tacit install --dry-run > tacit.yaml      # only print the objects`,
		Args: cobra.NoArgs,
	}
	releaseFlags(cmd.Flags(), &f)
	valueFlags(cmd.Flags(), &o)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the objects and change nothing; needs no cluster")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dryRun {
			values, err := o.Values()
			if err != nil {
				return err
			}
			text, err := deploy.Render(f.Namespace, values)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), deploy.NamespaceManifest(f.Namespace)+text)
			return err
		}
		c, err := f.Connect()
		if err != nil {
			return err
		}
		o.Out, o.Width = cmd.OutOrStdout(), terminalWidth(cmd.OutOrStdout())
		if err := install.Install(cmd.Context(), c, o); err != nil {
			return err
		}
		fmt.Fprintf(o.Out, "Tacit is installed. Opt a namespace in; no pod restarts:\n  kubectl label namespace NAMESPACE tacit.mesh/dataplane=enabled\n")
		return nil
	}
	return cmd
}

func upgradeCommand() *cobra.Command {
	var (
		f cluster.Flags
		o install.Options
	)
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the installed version by this one, or change its values",
		Long: `Replace the installed version by this one: first what is on the nodes, one node
at a time, then the control plane. No connection is refused or cut; those of an
old proxy go on with it for proxy.drainSeconds.

Values stay as they were installed but for those that are given.

Exit status: 0 all is ready, 1 it is not. If it is not, mend what it names and
run it again.`,
		Example: `  tacit upgrade
  tacit upgrade --set tacitd.replicas=3`,
		Args: cobra.NoArgs,
	}
	releaseFlags(cmd.Flags(), &f)
	valueFlags(cmd.Flags(), &o)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := f.Connect()
		if err != nil {
			return err
		}
		o.Out, o.Width = cmd.OutOrStdout(), terminalWidth(cmd.OutOrStdout())
		return install.Upgrade(cmd.Context(), c, o)
	}
	return cmd
}

func uninstallCommand() *cobra.Command {
	var (
		f cluster.Flags
		r install.Removal
	)
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Tacit off a cluster, with nothing left on its nodes",
		Long: `Take Tacit off a cluster. First all pods are let go, which cuts no connection;
then those that were captured have --drain to end, and it says how many it had
to cut; then each node is cleaned of rules, files and sockets, and the objects
are removed.

Traffic between the pods goes on in clear. What is left: the opt-in labels of
namespaces and pods, which are part of their manifests, and the kinds of
security.istio.io while there are policies.

Exit status: 0 nothing is left, 1 something could not be removed; it is named.`,
		Example: `  tacit uninstall
  tacit uninstall --drain 1h
  tacit uninstall --keep-ca       # and install again with the same identities`,
		Args: cobra.NoArgs,
	}
	releaseFlags(cmd.Flags(), &f)
	cmd.Flags().DurationVar(&r.Drain, "drain", time.Minute, "how long captured connections may go on")
	cmd.Flags().DurationVar(&r.Timeout, "timeout", 5*time.Minute, "how long each further step may take")
	cmd.Flags().BoolVar(&r.KeepCA, "keep-ca", false, "leave the CA's key, and the namespace that it is in")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := f.Connect()
		if err != nil {
			return err
		}
		r.Out = cmd.OutOrStdout()
		if err := install.Uninstall(cmd.Context(), c, r); err != nil {
			return err
		}
		fmt.Fprintln(r.Out, "Tacit is gone.")
		return nil
	}
	return cmd
}

// terminalWidth is 0 for what is no terminal.
func terminalWidth(out io.Writer) int {
	f, ok := out.(interface{ Fd() uintptr })
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}
