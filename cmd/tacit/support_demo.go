//go:build !inpod

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/cmd/tacit/support"
	"github.com/tacit-mesh/tacit/test/demo"
	"github.com/tacit-mesh/tacit/test/world"
)

// ofDemo are the parts of a kept demo, and of the machine that it is on.
func (f *supportFlags) ofDemo(cmd *cobra.Command) ([]support.Part, error) {
	proxies, err := f.remote.proxiesOfDemo(cmd, about{})
	if err != nil {
		return nil, err
	}
	kept, err := keptDemo()
	if err != nil {
		return nil, err
	}
	logs, err := f.logsOfDemo(kept.path)
	if err != nil {
		return nil, err
	}
	parts := f.ofNodes(proxies)
	for _, from := range proxies {
		parts = append(parts, support.Part{Name: path.Join("nodes", from.node, "metrics.txt"), Read: func(ctx context.Context) (io.ReadCloser, error) {
			text, err := world.Attach(ctx, kept.init, []string{"demo"}, from.node, "curl", "-sSf", demo.ProxyMetrics).Output()
			if err != nil {
				return nil, fmt.Errorf("metrics of node %s: %w", from.node, err)
			}
			return io.NopCloser(bytes.NewReader(text)), nil
		}})
	}
	return append(append(parts, logs...), f.ofMachine()...), nil
}

// logsOfDemo are those of our own programs; where says where the demo's files are.
func (f *supportFlags) logsOfDemo(where func(string) string) (parts []support.Part, err error) {
	for _, pattern := range demo.Logs() {
		files, err := filepath.Glob(where(pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			parts = append(parts, support.Part{Name: path.Join("logs", filepath.Base(file)), Tail: true, Read: func(context.Context) (io.ReadCloser, error) {
				return os.Open(file)
			}})
		}
	}
	return parts, nil
}
