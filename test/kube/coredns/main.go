// Command coredns is CoreDNS with the plugins that a small cluster needs.
//
// It is a module of its own, so that CoreDNS' dependencies are not ours.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache" // each registers itself
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() { coremain.Run() }
