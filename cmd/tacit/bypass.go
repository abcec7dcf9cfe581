//go:build !inpod

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/bypasses"
	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/internal/bypass"
)

// suspensions are where the flags say that bypasses are recorded.
type suspensions = recorded[bypass.Bypass]

func newSuspensions(connect func() (*cluster.Cluster, error)) suspensions {
	return suspensions{connect: connect, kind: bypasses.Kind(), everywhere: true}
}

func bypassCommand() *cobra.Command { return newBypassCommand(nil) }

func newBypassCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	r := newSuspensions(connect)
	var (
		duration   time.Duration
		reason     string
		policyOnly bool
		in         podsIn
	)
	cmd := &cobra.Command{
		Use:   "bypass NAMESPACE[/POD] --for DURATION --reason TEXT",
		Short: "Suspend the mesh for a pod or a namespace, for a while",
		Long: `Break the glass: for a while the mesh is out of the way of a pod, or of all pods
of a namespace. Peers are told to use plain TCP, new connections are not
captured any more, and policies deny nothing there. No connection is cut, at the
beginning or at the end: live ones go on as they began. It ends by itself, or by
tacit bypass end, and stays recorded: who, when, why.

With --policy-only the pods keep mutual TLS and everything is captured: only what
policies would have denied is let through, logged and counted as such.

What a bypass is not: a pod that it covers comes to others without an identity,
so STRICT peers go on denying it, and say that it is for the bypass. Identities
that were revoked stay denied. It takes three seconds to begin, in which peers
are told, and as long to end.

The record is an object Bypass of policy.tacit.mesh/v1alpha1 in the namespace
that it is about, or a manifest in the directory that tacitd reads (--from).
Whoever may create these objects there and has the verb bypass for them, as the
ClusterRole tacit-bypass gives it, may bypass; nobody may for longer than
tacitd --max-bypass. tacitd and the agent of the pod's node must be there for it
to begin; it ends with the clock of each.`,
		Example: `  tacit bypass shop --for 30m --reason "payments are down, incident 12"
  tacit bypass shop/backend-7d4b9 --for 1h --policy-only --reason "which policy is it?"
  tacit bypass list
  tacit bypass end shop`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			about, err := bypasses.ParseSubject(in.pod(args[0]))
			if err != nil {
				return err
			}
			return r.with(cmd, func(ctx context.Context, s bypasses.Store) error {
				b, err := bypasses.Begin(ctx, s, about, duration, reason, policyOnly)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is bypassed until %s; before that: tacit bypass end %s\n",
					about, b.Spec.Until.UTC().Format(time.RFC3339), about)
				return nil
			})
		},
	}
	r.flags(cmd)
	in.flags(cmd.Flags(), "")
	cmd.Flags().DurationVar(&duration, "for", 30*time.Minute, "how long")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever asks later")
	cmd.Flags().BoolVar(&policyOnly, "policy-only", false, "keep mutual TLS, and only stop denying")
	cmd.ValidArgsFunction = podNames(r.pods)
	cmd.AddCommand(bypassListCommand(connect), bypassEndCommand(connect))
	return cmd
}

func bypassListCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	r := newSuspensions(connect)
	return r.listCommand("List which bypasses are in force, for how long still, by whom and why, and which were", "bypasses", show.Printer.Bypasses)
}

func bypassEndCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	r := newSuspensions(connect)
	var in podsIn
	cmd := &cobra.Command{
		Use:   "end NAMESPACE[/POD] | NAMESPACE/BYPASS",
		Short: "End the bypasses of a pod or a namespace now, or one by its name",
		Example: `  tacit bypass end shop
  tacit bypass end shop/backend-7d4b9
  tacit bypass end shop/bypass-shop-20261121-221500-000`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := in.pod(args[0])
			// Whoever may bypass in one namespace need not see the others.
			r.meant, _, _ = strings.Cut(what, "/")
			return r.with(cmd, func(ctx context.Context, s bypasses.Store) error {
				ended, err := bypasses.End(ctx, s, what)
				if err != nil {
					return err
				}
				for _, b := range ended {
					fmt.Fprintf(cmd.OutOrStdout(), "bypass %s is ended\n", b)
				}
				return nil
			})
		},
	}
	r.flags(cmd)
	in.flags(cmd.Flags(), "")
	return cmd
}
