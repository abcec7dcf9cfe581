package main

import (
	"cmp"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// certificates is the answer to /certificates.
type certificates = admin.NodeCertificates

func certsCommand() *cobra.Command {
	c := client{more: []string{outputWide}}
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "List the certificates of the pods, when they end, and what keeps them from being renewed",
		Long: `List the certificates of the node's pods, or of a cluster's, those that end first
at the top. A certificate is renewed at half of its life; one whose renewal
fails serves until its end, and no longer.`,
		Example: `  tacit certs
  tacit certs -o json`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		if len(all) > 1 {
			return c.certificatesOfAll(cmd, all)
		}
		var answer certificates
		p, err := c.get(cmd, all[0], "/certificates", nil, &answer)
		if err != nil {
			return err
		}
		return p.Certificates(endFirst(answer))
	}
	return cmd
}

func (c *client) certificatesOfAll(cmd *cobra.Command, all []answerer) error {
	answers := askAll[certificates](cmd, all, "/certificates", nil)
	nodes := []certificates{}
	for _, a := range answers {
		if a.err == nil {
			nodes = append(nodes, a.value)
		}
	}
	var err error
	if forPrograms(c.output) {
		err = printAs(cmd.OutOrStdout(), c.output, nodesSaid(nodes, answers))
	} else {
		p := c.printer(cmd)
		err = errors.Join(p.Certificates(endFirst(nodes...)), partial(p, silent(answers), len(all)))
	}
	return errors.Join(err, failures(answers))
}

// endFirst puts what is missing before what ends first.
func endFirst(nodes ...certificates) []show.Certificate {
	var rows []show.Certificate
	for _, n := range nodes {
		for _, c := range n.Certificates {
			rows = append(rows, show.Certificate{Node: n.Node, Certificate: c})
		}
	}
	slices.SortStableFunc(rows, func(a, b show.Certificate) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.Node, b.Node))
	})
	return rows
}
