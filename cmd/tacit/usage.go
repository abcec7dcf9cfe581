package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// groups are how the help lists what there is.
var groups = []struct {
	title    string
	commands []string
}{
	{"See and explain:", []string{"status", "explain", "connections", "flows", "tap", "top", "coverage", "ui", "certs", "dump"}},
	{"Policies and who is let in:", []string{"lint", "replay", "bypass", "identity", "audit"}},
	{"On a cluster:", []string{"check", "install", "upgrade", "uninstall", "ca", "support"}},
	{"Try and measure:", []string{"demo", "bench"}},
}

// group sorts the commands by what they are for.
func group(root *cobra.Command) {
	for _, g := range groups {
		for _, cmd := range root.Commands() {
			if !slices.Contains(g.commands, cmd.Name()) {
				continue
			}
			cmd.GroupID = g.title
			if !root.ContainsGroup(g.title) {
				root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
			}
		}
	}
}

// explainArgs has commands say what they want where they are given something
// else. Without it one that is made of others takes any word for a wish for help.
func explainArgs(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		explainArgs(sub)
		want := func(cmd *cobra.Command) string { return ": want " + cmd.UseLine() }
		if sub.HasSubCommands() && !sub.Runnable() {
			sub.Args = cobra.NoArgs
			sub.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			sub.DisableFlagsInUseLine = true
			want = func(*cobra.Command) string { return "" }
		}
		if accepts := sub.Args; accepts != nil {
			sub.Args = func(cmd *cobra.Command, args []string) error {
				if err := accepts(cmd, args); err != nil {
					return fmt.Errorf("%w%s (see %s --help)", err, want(cmd), cmd.CommandPath())
				}
				return nil
			}
		}
	}
}
