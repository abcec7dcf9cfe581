package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

func tapCommand() *cobra.Command {
	c := client{more: []string{outputWide}}
	var (
		f     filterFlags
		most  time.Duration
		count int
	)
	cmd := &cobra.Command{
		Use:   "tap [NAMESPACE/POD]",
		Short: "Watch connections and requests as they happen",
		Long: `Show connections as they are opened, end or are denied, and requests of HTTP as
they are answered, until Ctrl-C. With an argument, what a pod, an owner of pods
or a namespace is part of.

A tap costs the proxy next to nothing and nothing waits for it: beyond 500 a
second a sample is shown, and ×N says for how many one stands. With -o json,
one object a line.`,
		Example: `  tacit tap shop/backend
  tacit tap -n shop                      # what is part of a namespace
  tacit tap --to shop/ --outcome denied
  tacit tap --identity ns/web/sa/frontend --requests
  tacit tap --security plain,passthrough --count 10 -o json | jq .source`,
		Args: cobra.MaximumNArgs(1),
	}
	c.flags(cmd)
	cmd.ValidArgsFunction = podNames(c.podsOfMesh)
	f.flags(cmd.Flags())
	c.completeEnds(cmd, "from", "to")
	cmd.Flags().DurationVar(&most, "for", 0, "end after this `time`; 0: with Ctrl-C")
	cmd.Flags().IntVar(&count, "count", 0, "end after this `number` of flows; 0: with Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query, err := f.query(args)
		if err != nil {
			return err
		}
		all, err := c.proxies(cmd, about{})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		if most > 0 {
			ctx, cancel = context.WithTimeout(cmd.Context(), most)
		}
		defer cancel()
		return c.tap(ctx, cmd, all, query, count)
	}
	return cmd
}

// tapped is what the proxy of a node says: a line, or why there are no more.
type tapped struct {
	node string
	line admin.TapLine
	err  error
}

// tap shows what all proxies say until the context ends, or the last of them
// has.
func (c *client) tap(ctx context.Context, cmd *cobra.Command, all []answerer, query url.Values, count int) error {
	ctx, cancel := context.WithCancel(ctx)
	lines := make(chan tapped)
	var taps sync.WaitGroup
	defer taps.Wait()
	defer cancel()
	for _, from := range all {
		taps.Go(func() { followTap(ctx, from, query, lines) })
	}
	p, ended := c.printer(cmd), []answer[struct{}]{}
	for shown := 0; ; {
		var t tapped
		select {
		case t = <-lines:
		case <-ctx.Done():
			return nil
		}
		var err error
		switch {
		case t.err != nil:
			if ended = append(ended, answer[struct{}]{node: t.node, err: t.err}); len(ended) == len(all) {
				_, err := partly(ended)
				return err
			}
			cmd.PrintErrf("tacit: partial from here on: node %s: %v\n", t.node, t.err)
		case t.line.Lost+t.line.Sampled > 0:
			for _, text := range notShown(t.node, t.line) {
				cmd.PrintErrln("tacit:", text)
			}
		case t.line.Flow != nil:
			flow := *t.line.Flow
			flow.Node = t.node
			switch c.output {
			case outputYAML:
				err = printAs(cmd.OutOrStdout(), outputYAML, []any{flow}) // together they are one list
			case outputJSON:
				err = printAs(cmd.OutOrStdout(), outputJSON, flow)
			default:
				err = p.Flow(flow, len(all) > 1, shown == 0)
			}
			shown++
		default:
			cmd.PrintErrf("tacit: watching node %s\n", t.node)
		}
		if err != nil || count > 0 && shown >= count {
			return err
		}
	}
}

// notShown is about flows that a tap does not show. To narrow it helps where it is
// the reading that is slow; what a sample leaves out no tap shows.
func notShown(node string, line admin.TapLine) (texts []string) {
	of := answerer{node: node}.where()
	if line.Lost > 0 {
		texts = append(texts, fmt.Sprintf("%d flows%s are not shown: there were more than could be read here. Narrow the tap with --from, --to or --outcome", line.Lost, of))
	}
	if line.Sampled > 0 {
		texts = append(texts, fmt.Sprintf("%d more flows%s are not shown: they ended a burst of which the proxy kept a sample. tacit coverage counts all", line.Sampled, of))
	}
	return texts
}

// followTap passes on what one proxy says.
func followTap(ctx context.Context, from answerer, query url.Values, lines chan<- tapped) {
	say := func(t tapped) {
		if t.node == "" {
			t.node = from.node
		}
		select {
		case lines <- t:
		case <-ctx.Done():
		}
	}
	body, err := from.follow(ctx, "/tap", query)
	if err != nil {
		say(tapped{err: err})
		return
	}
	defer body.Close()
	stop := context.AfterFunc(ctx, func() { body.Close() })
	defer stop()
	node := from.node // and not what a proxy says of itself, where it is known
	for in := json.NewDecoder(body); ; {
		var line admin.TapLine
		if err := in.Decode(&line); err != nil {
			say(tapped{node: node, err: endOfTap(err)})
			return
		}
		if node == "" {
			node = line.Node
		}
		say(tapped{node: node, line: line})
	}
}

func endOfTap(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("the proxy's answer cannot be read: is it of another version? %w", err)
	}
	return fmt.Errorf("the proxy has ended the tap, or gone: %w", err)
}
