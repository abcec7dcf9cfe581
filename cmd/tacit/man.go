//go:build !inpod

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/tacit-mesh/tacit/internal/version"
)

// manCommand is how make man and packagers get the manual pages.
func manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "man --dir DIRECTORY",
		Short: "Write the manual pages of all commands, for section 1",
		Long: `Write a manual page for tacit and for each of its commands: tacit.1,
tacit-explain.1 and so on. make man writes them into bin/man, make install puts
them where man finds them.`,
		Example: `  tacit man --dir /usr/local/share/man/man1
  man -l /usr/local/share/man/man1/tacit-explain.1`,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("man: %w", err)
			}
			return writePages(cmd.Root(), dir)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` to write into")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

// writePages writes those of all commands, and of what is a page of help alone.
func writePages(root *cobra.Command, dir string) error {
	root.DisableAutoGenTag = true
	header := doc.GenManHeader{Source: "Tacit " + version.String(), Manual: "Tacit"}
	if err := doc.GenManTree(root, &header, dir); err != nil {
		return fmt.Errorf("man: %w", err)
	}
	for _, topic := range root.Commands() {
		if !topic.IsAdditionalHelpTopicCommand() {
			continue
		}
		page, err := os.Create(filepath.Join(dir, root.Name()+"-"+topic.Name()+".1"))
		if err != nil {
			return fmt.Errorf("man: %w", err)
		}
		own := header
		if err := errors.Join(doc.GenMan(topic, &own, page), page.Close()); err != nil {
			return fmt.Errorf("man: %w", err)
		}
	}
	return nil
}
