package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/cmd/tacit/show"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// atOnce is how many nodes are asked at a time.
const atOnce = 8

// answer is what the proxy of one node says, or why it does not.
type answer[T any] struct {
	node  string
	value T
	err   error
}

// askAll asks the same of several proxies and reads all answers, in the order
// of the nodes.
func askAll[T any](cmd *cobra.Command, all []answerer, path string, query url.Values) []answer[T] {
	answers := make([]answer[T], len(all))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, from := range all {
		group.Go(func() error {
			answers[i].node = from.node
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			body, err := from.ask(ctx, path, query)
			if err == nil {
				defer body.Close()
				err = from.read(body, &answers[i].value)
			}
			answers[i].err = err
			return nil
		})
	}
	_ = group.Wait()
	return answers
}

// failures joins the errors of all nodes that gave no answer.
func failures[T any](answers []answer[T]) error {
	var problems []error
	for _, a := range answers {
		if a.err != nil {
			problems = append(problems, fmt.Errorf("node %s: %w", a.node, a.err))
		}
	}
	return errors.Join(problems...)
}

func (c *client) statusOfAll(cmd *cobra.Command, all []answerer) error {
	answers := askAll[json.RawMessage](cmd, all, "/status", nil)
	nodes := []show.Node{}
	for _, a := range answers {
		node := show.Node{Name: a.node, Err: a.err}
		if a.err == nil {
			node.Err = json.Unmarshal(a.value, &node.Status)
		}
		nodes = append(nodes, node)
	}
	var err error
	if forPrograms(c.output) {
		texts := []json.RawMessage{}
		for _, a := range answers {
			if a.err == nil {
				texts = append(texts, a.value)
			}
		}
		err = printAs(cmd.OutOrStdout(), c.output, map[string]any{"nodes": texts})
	} else {
		err = c.printer(cmd).Nodes(nodes)
	}
	return errors.Join(err, failures(answers))
}

func (c *client) connectionsOfAll(cmd *cobra.Command, all []answerer, query url.Values) error {
	answers := askAll[connections](cmd, all, "/connections", query)
	merged := connections{Connections: []admin.Connection{}}
	for _, a := range answers {
		merged.Connections = append(merged.Connections, a.value.Connections...)
	}
	slices.SortStableFunc(merged.Connections, func(a, b admin.Connection) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID), cmp.Compare(b.Direction, a.Direction))
	})
	var err error
	if forPrograms(c.output) {
		err = printAs(cmd.OutOrStdout(), c.output, merged)
	} else {
		err = c.printer(cmd).Connections(merged.Connections)
	}
	return errors.Join(err, failures(answers))
}

// explainByAll shows what each node says that knows the connection: its own
// side of it.
func (c *client) explainByAll(cmd *cobra.Command, all []answerer, query url.Values) error {
	var end error
	known, texts := 0, []json.RawMessage{}
	answers := askAll[json.RawMessage](cmd, all, "/explain", query)
	for _, a := range answers {
		if a.err != nil {
			continue
		}
		var e admin.Explanation
		if err := json.NewDecoder(bytes.NewReader(a.value)).Decode(&e); err != nil {
			return fmt.Errorf("answer of the proxy of node %s: %w", a.node, err)
		}
		texts = append(texts, a.value)
		if c.output == outputText {
			p := c.printer(cmd)
			if err := p.Heading("node "+a.node, known > 0); err != nil {
				return err
			}
			if err := p.Explanation(e); err != nil {
				return err
			}
		}
		known++
		if err := exitOf(e); err != nil {
			end = err
		}
	}
	if known == 0 {
		return failures(answers)
	}
	if forPrograms(c.output) {
		if err := printAs(cmd.OutOrStdout(), c.output, map[string]any{"nodes": texts}); err != nil {
			return err
		}
	}
	return end
}
