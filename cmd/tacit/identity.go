//go:build !inpod

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/revoked"
	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/xds/kinds"
)

// revocations are where the flags say that revocations are recorded.
type revocations = recorded[kinds.RevokedIdentity]

func identityCommand() *cobra.Command { return newIdentityCommand(nil) }

func newIdentityCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "identity",
		Short: "Revoke an identity for a while, restore it, and see which are revoked",
		Long: `Take an identity out of the mesh at once, for a while: whatever comes from it is
denied everywhere, and whatever goes to its pods; connections that live are
reset. It ends by itself, and stays recorded: who revoked it, when, and why.
What its pods send in clear bears no identity: STRICT denies that. The proxies
of the destination deny, so a node that is not to be trusted needs a list of
revoked certificates (tacit-proxy --crl).

The record is an object RevokedIdentity of policy.tacit.mesh/v1alpha1 in Tacit's
namespace, or a manifest in the directory that tacitd reads (--from). tacitd
tells all proxies, so it must be there to begin it and to end it.`,
	}
	cmd.AddCommand(revokeCommand(connect), identityListCommand(connect), restoreCommand(connect))
	return cmd
}

func revokeCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	r := revocations{connect: connect, kind: revoked.Kind()}
	var (
		duration time.Duration
		reason   string
	)
	cmd := &cobra.Command{
		Use:     "revoke SPIFFE-ID --for DURATION --reason TEXT",
		Short:   "Deny everything from an identity, and to its pods, for a while",
		Example: `  tacit identity revoke spiffe://cluster.local/ns/shop/sa/web --for 24h --reason "key leaked, see incident 7"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.with(cmd, func(ctx context.Context, s revoked.Store) error {
				record, err := revoked.Revoke(ctx, s, r.cluster.Namespace, args[0], duration, reason)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked until %s; before that: tacit identity restore %s\n",
					args[0], record.Spec.Until.UTC().Format(time.RFC3339), args[0])
				return nil
			})
		},
	}
	r.flags(cmd)
	cmd.Flags().DurationVar(&duration, "for", 24*time.Hour, "how long")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever finds the identity denied")
	return cmd
}

func identityListCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	r := revocations{connect: connect, kind: revoked.Kind()}
	return r.listCommand("List which identities are revoked, for how long still, by whom and why, and which were", "revokedIdentities", show.Printer.Revocations)
}

func restoreCommand(connect func() (*cluster.Cluster, error)) *cobra.Command {
	r := revocations{connect: connect, kind: revoked.Kind()}
	cmd := &cobra.Command{
		Use:     "restore SPIFFE-ID",
		Short:   "End the revocation of an identity now",
		Example: `  tacit identity restore spiffe://cluster.local/ns/shop/sa/web`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.with(cmd, func(ctx context.Context, s revoked.Store) error {
				if _, err := revoked.Restore(ctx, s, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is restored\n", args[0])
				return nil
			})
		},
	}
	r.flags(cmd)
	return cmd
}
