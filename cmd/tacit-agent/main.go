// Command tacit-agent captures the pods of a node: it installs rules in their
// network namespaces and hands sockets made there to tacit-proxy, which has no
// privileges of its own. It parses no traffic.
package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/internal/idle"
)

// garbage is how much of it, in percent of what is in use, the agent keeps. It
// has little to do and is on every node: time is cheaper than memory.
const garbage = 25

// busy is what the agent allocates in 10 s, in bytes, when many pods come or go.
// Looking after hundreds of pods takes less.
const busy = 64 << 20

func main() {
	runtime.MemProfileRate = 0 // nobody could ask for the profile, and it takes memory
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	go func() { _ = idle.ReturnMemory(context.Background(), busy) }() // as long as the program lives
	cli.Main(command())
}
