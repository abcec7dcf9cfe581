package main

import (
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

// failures joins the errors of all nodes that gave no answer. If others did, the
// answer is partial.
func failures[T any](answers []answer[T]) error {
	var problems []error
	for _, a := range answers {
		if a.err != nil {
			problems = append(problems, fmt.Errorf("node %s: %w", a.node, a.err))
		}
	}
	err := errors.Join(problems...)
	if err != nil && len(problems) < len(answers) {
		return partialError{err}
	}
	return err
}

// said is what several nodes say, for programs.
type said[T any] struct {
	Nodes   []T       `json:"nodes"`
	Partial bool      `json:"partial"`
	Missing []missing `json:"missing"`
}

func nodesSaid[T, A any](nodes []T, answers []answer[A]) said[T] {
	without := silent(answers)
	return said[T]{nodes, len(without) > 0, without}
}

// silent are the nodes that gave no answer.
func silent[T any](answers []answer[T]) []missing {
	without := []missing{}
	for _, a := range answers {
		if a.err != nil {
			without = append(without, missing{a.node, a.err.Error()})
		}
	}
	return without
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
		err = printAs(cmd.OutOrStdout(), c.output, nodesSaid(texts, answers))
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
		without := silent(answers)
		err = printAs(cmd.OutOrStdout(), c.output, struct {
			connections
			Partial bool      `json:"partial"`
			Missing []missing `json:"missing"`
		}{merged, len(without) > 0, without})
	} else {
		p := c.printer(cmd)
		err = errors.Join(p.Connections(merged.Connections), partial(p, silent(answers), len(all)))
	}
	return errors.Join(err, failures(answers))
}

// explainByAll shows what each node says that knows the connection: its own
// side of it, of which there are two.
func (c *client) explainByAll(cmd *cobra.Command, all []answerer, query url.Values) error {
	var (
		quiet []answer[json.RawMessage] // that gave no answer
		texts []json.RawMessage
		wrong bool
	)
	answers := askAll[json.RawMessage](cmd, all, "/explain", query)
	for _, a := range answers {
		var absent absentError
		if a.err != nil && !errors.As(a.err, &absent) {
			quiet = append(quiet, a)
		}
		if a.err != nil {
			continue
		}
		var e admin.Explanation
		if err := json.Unmarshal(a.value, &e); err != nil {
			return fmt.Errorf("answer of the proxy of node %s: %w", a.node, err)
		}
		if !forPrograms(c.output) {
			p := c.printer(cmd)
			if err := errors.Join(p.Heading("node "+a.node, len(texts) > 0), p.Explanation(e)); err != nil {
				return err
			}
		}
		texts = append(texts, a.value)
		wrong = wrong || denied(e)
	}
	const sides = 2
	switch {
	case len(texts) == 0 && len(quiet) < len(answers):
		return absentError{failures(answers), failures(quiet)}
	case len(texts) == 0:
		return failures(answers)
	case len(texts) >= sides:
		quiet = nil // they would know nothing of it
	}
	var err, lack error
	if forPrograms(c.output) {
		err = printAs(cmd.OutOrStdout(), c.output, nodesSaid(texts, quiet))
	} else {
		err = partial(c.printer(cmd), silent(quiet), len(all))
	}
	if len(quiet) > 0 {
		lack = partialError{failures(quiet)}
	}
	return ended(cmd, err, lack, wrong)
}
