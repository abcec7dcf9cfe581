// Command build builds the servers that tests run, ahead of the tests: with
// a test's own time limit, the first one would not get far.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/tacit-mesh/tacit/test/servers"
)

func main() {
	for _, module := range os.Args[1:] {
		if _, err := servers.Build(context.Background(), module, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, "build:", err)
			os.Exit(1)
		}
	}
}
