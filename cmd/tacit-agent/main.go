// Command tacit-agent captures the pods of a node: it installs rules in their
// network namespaces and hands sockets made there to tacit-proxy, which has no
// privileges of its own. It parses no traffic.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tacit-agent:", err)
		os.Exit(1)
	}
}
