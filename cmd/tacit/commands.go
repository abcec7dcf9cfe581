package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

func statusCommand() *cobra.Command {
	c := client{more: []string{outputWide}}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the proxies serve and how they are",
		Long: `Show the proxy's pods and certificates, its link to the control plane, and the
generation of the mesh that it applies: how many updates it has taken in. Of a
cluster, one line for each node.`,
		Example: `  tacit status
  tacit status -o json`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		if len(all) > 1 {
			return c.statusOfAll(cmd, all)
		}
		var s admin.Status
		p, err := c.get(cmd, all[0], "/status", nil, &s)
		if err != nil {
			return err
		}
		return p.Status(s)
	}
	return cmd
}

// connections is the answer to /connections.
type connections struct {
	Connections []admin.Connection `json:"connections"`
}

func connectionsCommand() *cobra.Command {
	c := client{more: []string{outputWide}}
	var (
		from, to      string
		in            podsIn
		denied, ended bool
	)
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "List connections, live ones or those just ended or denied",
		Long: `List the connections of the node's pods, or of a cluster's, oldest first. The proxy remembers the
last few thousand that ended. The id of a connection is the same on both
nodes, in both logs, and in tacit explain ID.`,
		Example: `  tacit connections
  tacit connections --to shop/backend        # towards one pod
  tacit connections --from shop/             # from a namespace
  tacit connections --from 198.18.1.7        # from an address
  tacit connections --denied                 # what was denied of late, and why`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	in.flags(cmd.Flags(), "; alone, only what is part of it")
	cmd.Flags().StringVar(&from, "from", "", "only those from this `client`: NAMESPACE/POD, NAMESPACE/ or an address")
	cmd.Flags().StringVar(&to, "to", "", "only those to this `server`: NAMESPACE/POD, NAMESPACE/ or an address")
	c.completeEnds(cmd, "from", "to")
	cmd.Flags().BoolVar(&denied, "denied", false, "instead of live ones, those that were denied")
	cmd.Flags().BoolVar(&ended, "ended", false, "instead of live ones, those that ended or were denied")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		query := url.Values{}
		if from == "" && to == "" {
			set(query, "either", in.any())
		}
		set(query, "from", in.pod(from))
		set(query, "to", in.pod(to))
		if denied {
			query.Set("denied", "")
		}
		if ended {
			query.Set("ended", "")
		}
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		if len(all) > 1 {
			return c.connectionsOfAll(cmd, all, query)
		}
		var answer connections
		p, err := c.get(cmd, all[0], "/connections", query, &answer)
		if err != nil {
			return err
		}
		return p.Connections(answer.Connections)
	}
	return cmd
}

func dumpCommand() *cobra.Command {
	var (
		c      client
		export bool
	)
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Print the whole mesh as the proxy knows it, as JSON or YAML",
		Long: `Print every workload, service and policy that the proxy has from the control
plane, as one document: JSON, unless it is to be YAML. There are no keys and no
tokens in it. With --export the mesh is in it a second time, whole and for
programs: tacit explain --dump explains by it what you like, later and
elsewhere. The values that policies compare headers with are taken out of it.`,
		Example: `  tacit dump
  tacit dump | jq '.workloads[] | select(.namespace == "shop")'
  tacit dump --export > dump.json`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&export, "export", false, "add the mesh in the form that tacit explain --dump reads")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := c.proxies(cmd, about{one: true})
		if err != nil {
			return err
		}
		query := url.Values{}
		if export {
			query.Set("export", "")
		}
		if c.output == outputYAML {
			_, err = c.get(cmd, all[0], "/dump", query, new(json.RawMessage))
			return err
		}
		return all[0].copy(cmd.Context(), cmd.OutOrStdout(), "/dump", query)
	}
	return cmd
}

// askCommand is how the command on a person's machine asks this one in a pod.
func askCommand() *cobra.Command {
	var (
		c      client
		follow bool
	)
	cmd := &cobra.Command{
		Use:    "ask PATH",
		Short:  "Print the proxy's answer to a path of its admin socket as it is",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&c.socket, "socket", admin.DefaultPath, "admin `path` of the proxy to ask")
	cmd.Flags().BoolVar(&follow, "follow", false, "wait for as long as the answer goes on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		where, err := url.Parse(args[0])
		if err != nil {
			return fmt.Errorf("ask: %w", err)
		}
		ask := c.ask
		if follow {
			ask = c.follow
		}
		err = answerer{ask: ask}.copy(cmd.Context(), cmd.OutOrStdout(), where.Path, where.Query())
		var absent absentError
		if errors.As(err, &absent) {
			cmd.PrintErrln("tacit:", absent)
			return exitError(exitAbsent) // which the other end tells from other errors
		}
		return err
	}
	return cmd
}

// copy passes an answer on as it is.
func (a answerer) copy(ctx context.Context, out io.Writer, path string, query url.Values) error {
	body, err := a.ask(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(out, body); err != nil {
		return fmt.Errorf("answer of the proxy%s: %w", a.where(), err)
	}
	return nil
}

func set(query url.Values, name, value string) {
	if value != "" {
		query.Set(name, value)
	}
}
