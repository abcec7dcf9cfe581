// Command tacit-agent captures the pods of a node: it installs rules in their
// network namespaces and hands sockets made there to tacit-proxy, which has no
// privileges of its own. It parses no traffic.
package main

import "github.com/tacit-mesh/tacit/internal/cli"

func main() { cli.Main(command()) }
