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
	var c client
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
	var (
		c             client
		from, to      string
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
	cmd.Flags().StringVar(&from, "from", "", "only those from this `client`: NAMESPACE/POD, NAMESPACE/ or an address")
	cmd.Flags().StringVar(&to, "to", "", "only those to this `server`: NAMESPACE/POD, NAMESPACE/ or an address")
	cmd.Flags().BoolVar(&denied, "denied", false, "instead of live ones, those that were denied")
	cmd.Flags().BoolVar(&ended, "ended", false, "instead of live ones, those that ended or were denied")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		query := url.Values{}
		set(query, "from", from)
		set(query, "to", to)
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

func explainCommand() *cobra.Command {
	var (
		c        client
		mesh     meshFlags
		from, to string
	)
	cmd := &cobra.Command{
		Use:   "explain [ID | --from NAMESPACE/POD --to TARGET]",
		Short: "Say step by step why a connection is or would be allowed or denied",
		Long: `Follow a connection from the client's socket to the server's: is it captured,
or does a skip list cover it; where does its destination lead; which identity
arrives; what does each policy say; and what would have to change for the
opposite outcome.

With --from and --to nothing is connected: the proxy reasons about the mesh as
it knows it, and any node's proxy gives the same answer. TARGET is
NAMESPACE/POD:PORT, HOST:PORT (as the client's DNS would read it) or IP:PORT.

With ID it is a connection that the node's proxy carries or remembers, in a
cluster those of both nodes: what was recorded, and what would become of it
now. Ids are in the log ("id") and in tacit connections.

With --mesh nothing is asked of anybody: the mesh is that of its pods, services
and policies, as kubectl or the manifests of tacitd --from have them, together
with --policies that are not in force yet. What of them has no effect as
written is said on the standard error.

Exit status: 0 it is allowed or nothing checks it, 3 it is or may be denied,
1 there is no answer.`,
		Example: `  tacit explain --from shop/frontend --to shop/backend-7d4b9:8080
  tacit explain --from shop/frontend --to backend.shop:80
  tacit explain --from 203.0.113.9 --to shop/backend-7d4b9:8080   # a client outside the mesh
  tacit explain 4bf92f3577b34da6a3ce929d0e0e4736
  tacit explain --from shop/frontend --to shop/backend-7d4b9:8080 --mesh mesh.yaml --policies strict.yaml`,
		Args: cobra.MaximumNArgs(1),
	}
	c.flags(cmd)
	mesh.flags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "`client`: NAMESPACE/POD, or an address")
	cmd.Flags().StringVar(&to, "to", "", "`target`: NAMESPACE/POD:PORT, HOST:PORT or IP:PORT")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query := url.Values{}
		switch {
		case len(mesh.mesh) > 0 && len(args) == 0 && from != "" && to != "":
			return c.explainOffline(cmd, &mesh, from, to)
		case len(mesh.mesh)+len(mesh.policies) > 0 || mesh.instead:
			return errors.New("explain: --mesh, with or without --policies, goes with --from and --to; see tacit explain --help")
		case len(args) == 1 && from == "" && to == "":
			set(query, "id", args[0])
		case len(args) == 0 && from != "" && to != "":
			set(query, "from", from)
			set(query, "to", to)
		default:
			return errors.New("explain: name either the id of a connection or both --from and --to; see tacit explain --help")
		}
		all, err := c.proxies(cmd, about{from: from, to: to, one: len(args) == 0})
		if err != nil {
			return err
		}
		if len(all) > 1 {
			return c.explainByAll(cmd, all, query)
		}
		var e admin.Explanation
		p, err := c.get(cmd, all[0], "/explain", query, &e)
		if err != nil {
			return err
		}
		if err := p.Explanation(e); err != nil {
			return err
		}
		return exitOf(e)
	}
	return cmd
}

// explainOffline explains a pair in a mesh of objects.
func (c *client) explainOffline(cmd *cobra.Command, f *meshFlags, from, to string) error {
	if err := checkOutput(c.output, c.more...); err != nil {
		return err
	}
	mesh, err := f.read(cmd)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	e, err := admin.Explain(mesh, from, to)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	if forPrograms(c.output) {
		err = printAs(cmd.OutOrStdout(), c.output, e)
	} else {
		err = c.printer(cmd).Explanation(e)
	}
	if err != nil {
		return err
	}
	return exitOf(e)
}

// exitOf is the command's end for one outcome.
func exitOf(e admin.Explanation) error {
	if e.Outcome != admin.Allowed && e.Outcome != admin.Unchecked {
		return exitError(exitDenied)
	}
	return nil
}

func dumpCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Print the whole mesh as the proxy knows it, as JSON or YAML",
		Long: `Print every workload, service and policy that the proxy has from the control
plane, as one document: JSON, unless it is to be YAML.`,
		Example: `  tacit dump
  tacit dump | jq '.workloads[] | select(.namespace == "shop")'`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := c.proxies(cmd, about{one: true})
		if err != nil {
			return err
		}
		if c.output == outputYAML {
			_, err = c.get(cmd, all[0], "/dump", nil, new(json.RawMessage))
			return err
		}
		return all[0].copy(cmd.Context(), cmd.OutOrStdout(), "/dump", nil)
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
		return answerer{ask: ask}.copy(cmd.Context(), cmd.OutOrStdout(), where.Path, where.Query())
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
