//go:build inpod

package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// clusterCommands are none in a pod of the proxy: what talks to the Kubernetes
// API has no business next to hostile bytes.
func clusterCommands() []*cobra.Command { return nil }

// remote is nothing here: only the pod's own proxy is asked.
type remote struct{}

func (remote) flags(*pflag.FlagSet) {}

func (remote) policyUses(*cobra.Command, string) (string, error) { return "", nil }

func (remote) proxies(*cobra.Command, string, about) ([]answerer, error) { return nil, nil }
