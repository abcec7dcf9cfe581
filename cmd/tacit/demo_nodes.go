//go:build !inpod

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/test/demo"
)

// path is one of the kept demo's files, as this machine has it.
func (k keptProcesses) path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(k.init), "root", inside)
}

// proxiesOfDemo are those of a kept demo's nodes, as a cluster's would be.
func (r *remote) proxiesOfDemo(cmd *cobra.Command, what about) ([]answerer, error) {
	for _, name := range []string{"socket", "kubeconfig", "context", "tacit-namespace"} {
		if cmd.Flag(name).Changed {
			return nil, fmt.Errorf("--demo is about the demo of this machine, --%s is not: give one or the other", name)
		}
	}
	kept, err := keptDemo()
	if err != nil {
		return nil, err
	}
	return r.proxiesIn(cmd.Context(), kept.path, what)
}

// proxiesIn finds them by their sockets; path says where the demo's files are.
func (r *remote) proxiesIn(ctx context.Context, path func(string) string, what about) ([]answerer, error) {
	sockets, err := filepath.Glob(path(demo.AdminSockets))
	if err != nil {
		return nil, err
	}
	var all []answerer
	for _, socket := range sockets {
		c := &client{socket: socket}
		all = append(all, answerer{node: demo.NodeOf(socket), ask: c.ask, follow: c.follow})
	}
	if len(all) == 0 {
		return nil, errors.New("the demo has no proxy: end it with tacit demo end, and start it anew")
	}
	node := r.node
	if node == "" && what.one {
		node = nodeOfEnds(ctx, all[0], what)
	}
	for i := range all {
		if all[i].node == node {
			return all[i : i+1], nil
		}
	}
	switch {
	case r.node != "":
		return nil, fmt.Errorf("the demo has no node %s", r.node)
	case what.one:
		return all[:1], nil
	}
	return all, nil
}

// nodeOfEnds is the client's node, or else the server's, as a proxy knows them; ""
// if it knows neither.
func nodeOfEnds(ctx context.Context, ask answerer, what about) string {
	body, err := ask.ask(ctx, "/dump", nil)
	if err != nil {
		return ""
	}
	defer body.Close()
	var mesh struct {
		Workloads []struct{ Namespace, Name, Node string }
	}
	if ask.read(body, &mesh) != nil {
		return ""
	}
	for _, end := range []string{what.from, what.to} {
		for _, w := range mesh.Workloads {
			if name, _, _ := strings.Cut(end, ":"); name == w.Namespace+"/"+w.Name {
				return w.Node
			}
		}
	}
	return ""
}
