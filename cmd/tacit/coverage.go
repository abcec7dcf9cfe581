package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
	"github.com/tacit-mesh/tacit/sight/uses"
)

// outputPrometheus is the text form of Prometheus' metrics.
const outputPrometheus = "prometheus"

func coverageCommand() *cobra.Command {
	c := client{more: []string{outputPrometheus, outputWide}}
	var (
		pairs bool
		kept  string
	)
	cmd := &cobra.Command{
		Use:   "coverage",
		Short: "Say how much of the traffic is mutual TLS, and what no policy covers",
		Long: `Sum up the connections that the proxies have carried since they began: how many
were mutual TLS, and why others were not, by namespace and by pair; and which
workloads no AuthorizationPolicy covers, which policies have decided about
nothing, and which pods are not captured. Which policies have decided about
nothing for a week tacitd remembers, through restarts of everything; it takes
the right to read the ConfigMap tacit-policy-uses in Tacit's namespace.

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
	cmd.Flags().StringVar(&kept, "policy-uses", "", "outside of a cluster, the `file` of tacitd --policy-uses, for what was of no use for a week")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		return c.coverage(cmd, all, kept, pairs)
	}
	return cmd
}

// week is what tacitd remembers of policies; nil where there is nothing.
func (c *client) week(cmd *cobra.Command, file string) (*uses.Report, error) {
	text, err := c.remote.policyUses(cmd, c.socket)
	if file != "" {
		var kept []byte
		kept, err = os.ReadFile(file)
		text = string(kept)
	}
	if err != nil || text == "" {
		return nil, err
	}
	var m uses.Memory
	if err := m.Merge(text); err != nil {
		return nil, err
	}
	return m.Report(time.Now()), nil
}

func (c *client) coverage(cmd *cobra.Command, all []answerer, kept string, pairs bool) error {
	week, lack := c.week(cmd, kept)
	if lack != nil {
		lack = partialError{fmt.Errorf("coverage: which policies were of no use for a week is not known: %w", lack)}
	}
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
	sum.Week = week
	switch c.output {
	case outputJSON, outputYAML:
		if lack != nil {
			without = append(without, missing{Error: lack.Error()})
		}
		err = printAs(cmd.OutOrStdout(), c.output, struct {
			*traffic.Coverage
			Partial bool      `json:"partial"`
			Missing []missing `json:"missing"`
		}{sum, len(without) > 0, without})
	case outputPrometheus:
		err = sum.WriteMetrics(cmd.OutOrStdout(), len(without))
	default:
		p := c.printer(cmd)
		err = errors.Join(p.Coverage(sum, pairs || p.Wide), partial(p, without, len(all)))
	}
	return errors.Join(err, failures(answers), lack)
}
