package main

import (
	"cmp"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
)

// filterFlags choose among flows.
type filterFlags struct {
	from, to, identity, outcome, security, direction string
	port                                             uint16
	requests, connections                            bool
	in                                               podsIn
}

func (f *filterFlags) flags(set *pflag.FlagSet) {
	f.in.flags(set, "; alone, only what is part of it")
	set.StringVar(&f.from, "from", "", "only those from this `client`: NAMESPACE/POD, NAMESPACE/OWNER, NAMESPACE/ or an address")
	set.StringVar(&f.to, "to", "", "only those to this `server`, named likewise")
	set.StringVar(&f.identity, "identity", "", "only those of which an end has this `identity`: spiffe://..., or how it ends, such as ns/shop/sa/frontend")
	set.Uint16Var(&f.port, "port", 0, "only those to this `port` of a server")
	set.StringVar(&f.outcome, "outcome", "", "only those that came out like this `list`: ok, denied, failed, reset")
	set.StringVar(&f.security, "security", "", "only those that travel like this `list`: mtls, local, plain, skipped, passthrough")
	set.StringVar(&f.direction, "direction", "", "only what this `side` tells: outbound is the client's node, inbound the server's")
	set.BoolVar(&f.requests, "requests", false, "only requests of HTTP, which are known where a policy about requests covers the port")
	set.BoolVar(&f.connections, "connections", false, "only connections")
}

// query is the filter as the proxy reads it; either is an end or "".
func (f *filterFlags) query(args []string) (url.Values, error) {
	q := url.Values{}
	if f.from == "" && f.to == "" {
		set(q, "either", f.in.any())
	}
	if len(args) > 0 {
		q.Set("either", f.in.pod(args[0]))
	}
	for name, value := range map[string]string{
		"from": f.in.pod(f.from), "to": f.in.pod(f.to), "identity": f.identity, "outcome": f.outcome, "security": f.security, "direction": f.direction,
	} {
		set(q, name, value)
	}
	if f.port != 0 {
		q.Set("port", strconv.Itoa(int(f.port)))
	}
	switch {
	case f.requests && f.connections:
		return nil, errors.New("--requests and --connections: give one or the other")
	case f.requests:
		q.Set("kind", "requests")
	case f.connections:
		q.Set("kind", "connections")
	}
	// What the proxy would refuse is said before anybody is asked.
	_, err := flows.ParseFilter(q)
	return q, err
}

// missing is a node that gave no answer.
type missing struct {
	Node  string `json:"node,omitempty"` // none of what no node is to say
	Error string `json:"error"`
}

// partly lists the nodes that gave no answer. If none gave one, that is the
// error, which all may share.
func partly[T any](answers []answer[T]) ([]missing, error) {
	without := silent(answers)
	if len(without) < len(answers) || len(answers) == 0 {
		return without, nil
	}
	if slices.ContainsFunc(without, func(m missing) bool { return m.Error != without[0].Error }) {
		return without, failures(answers)
	}
	return without, answers[0].err
}

// partial says that an answer lacks nodes, where it is read.
func partial(p show.Printer, without []missing, asked int) error {
	var names []string
	for _, m := range without {
		names = append(names, m.Node)
	}
	return p.Partial(names, asked)
}

func flowsCommand() *cobra.Command {
	c := client{more: []string{outputWide}}
	var (
		f     filterFlags
		since time.Duration
		limit int
	)
	cmd := &cobra.Command{
		Use:   "flows [NAMESPACE/POD]",
		Short: "List connections and requests of the last minutes, live ones included",
		Long: `List what went through the proxies in the last minutes, oldest first: the
connections that ended or were denied, those that live, and the requests of
HTTP where a policy looks into them. With an argument, what a pod, an owner of
pods or a namespace was part of. Between two pods of the mesh both nodes tell
their side; --direction inbound lists each once.

Each proxy remembers the last 16384 (--flows of tacit-proxy) and, where there
are more than 500 a second, a sample: ×N then says for how many one stands.
Denials and failures are sampled apart.`,
		Example: `  tacit flows --since 10m
  tacit flows shop/frontend --outcome denied,failed
  tacit flows -n shop frontend
  tacit flows --to shop/ --security plain       # who still comes in clear
  tacit flows -o json | jq '.flows[] | select(.http.status >= 500)'`,
		Args: cobra.MaximumNArgs(1),
	}
	c.flags(cmd)
	cmd.ValidArgsFunction = podNames(c.podsOfMesh)
	f.flags(cmd.Flags())
	c.completeEnds(cmd, "from", "to")
	cmd.Flags().DurationVar(&since, "since", 5*time.Minute, "how far to look back")
	cmd.Flags().IntVar(&limit, "limit", 1000, "`number` of flows to list of each node, the newest")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query, err := f.query(args)
		if err != nil {
			return err
		}
		query.Set("since", since.String())
		query.Set("limit", strconv.Itoa(limit))
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		return c.listFlows(cmd, all, query)
	}
	return cmd
}

func (c *client) listFlows(cmd *cobra.Command, all []answerer, query url.Values) error {
	answers := askAll[admin.Flows](cmd, all, "/flows", query)
	without, err := partly(answers)
	if err != nil {
		return err
	}
	merged := []flows.Flow{}
	for _, a := range answers {
		for _, flow := range a.value.Flows {
			flow.Node = cmp.Or(a.node, a.value.Node)
			merged = append(merged, flow)
		}
	}
	slices.SortStableFunc(merged, func(a, b flows.Flow) int { return a.Time.Compare(b.Time) })
	if forPrograms(c.output) {
		err = printAs(cmd.OutOrStdout(), c.output, struct {
			Flows   []flows.Flow `json:"flows"`
			Partial bool         `json:"partial"`
			Missing []missing    `json:"missing"`
		}{merged, len(without) > 0, without})
	} else {
		p := c.printer(cmd)
		err = errors.Join(p.Flows(merged, len(all) > 1), partial(p, without, len(all)))
	}
	return errors.Join(err, failures(answers))
}
