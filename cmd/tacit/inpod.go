//go:build inpod

package main

import "github.com/spf13/cobra"

// clusterCommands are none in a pod of the proxy: what talks to the Kubernetes
// API has no business next to hostile bytes.
func clusterCommands() []*cobra.Command { return nil }
