package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
)

// outputPrometheus is the text form of Prometheus' metrics.
const outputPrometheus = "prometheus"

func coverageCommand() *cobra.Command {
	c := client{more: []string{outputPrometheus}}
	var pairs bool
	cmd := &cobra.Command{
		Use:   "coverage",
		Short: "Say how much of the traffic is mutual TLS, and what no policy covers",
		Long: `Sum up the connections that the proxies have carried since they began: how many
were mutual TLS, and why others were not, by namespace and by pair; and which
workloads no AuthorizationPolicy covers, which policies have decided about
nothing, and which pods are not captured.

A connection counts once, whether one or both nodes saw it. Not seen, and so
not counted: what passes between two pods that are not captured, ports that
both ends skip, and other protocols than TCP, which
tacit_agent_uncaptured_flows_total of each node's agent counts.

With -o prometheus, the same as metrics, for a textfile collector or a
Pushgateway.`,
		Example: `  tacit coverage
  tacit coverage --pairs
  tacit coverage -o json | jq '{mtls: .all.share, policies: .policyCoverage}'
  tacit coverage -o prometheus > /var/lib/node_exporter/tacit.prom`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&pairs, "pairs", false, "list who talks to whom, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		return c.coverage(cmd, all, pairs)
	}
	return cmd
}

func (c *client) coverage(cmd *cobra.Command, all []answerer, pairs bool) error {
	answers := askAll[admin.Coverage](cmd, all, "/coverage", nil)
	for i := range answers {
		if a := &answers[i]; a.err == nil && a.value.Since.IsZero() {
			a.err = flows.ErrOff // nothing counted is not nothing in clear
		}
	}
	without, err := partly(answers)
	if err != nil {
		return err
	}
	var nodes []admin.Coverage
	for _, a := range answers {
		if a.err == nil {
			nodes = append(nodes, a.value)
		}
	}
	sum := traffic.Sum(nodes)
	switch c.output {
	case outputJSON, outputYAML:
		err = printAs(cmd.OutOrStdout(), c.output, struct {
			*traffic.Coverage
			Partial bool      `json:"partial"`
			Missing []missing `json:"missing"`
		}{sum, len(without) > 0, without})
	case outputPrometheus:
		err = sum.WriteMetrics(cmd.OutOrStdout(), len(without))
	default:
		p := c.printer(cmd)
		err = errors.Join(p.Coverage(sum, pairs), partial(p, without, len(all)))
	}
	return errors.Join(err, failures(answers))
}
