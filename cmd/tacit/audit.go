package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/internal/audit"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check that nobody has changed an audit log",
	}
	cmd.AddCommand(auditVerifyCommand())
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	expect := ""
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Follow the chain of hashes of an audit log, and name the line that breaks it",
		Long: `Read an audit log (tacit-proxy --audit, tacitd --audit), all of its files, the
oldest first, and check that each record has the hash that it says and follows
the one before. A line that was changed, taken out, put in or moved breaks that.

What a chain cannot show by itself is that all of it was written anew, or that
its end was cut off. Keep the hash that this prints somewhere else, and give it
the next time: that record must still be there, unchanged.

Exit status: 0 nothing was changed, 1 something was, or a file cannot be read.`,
		Example: `  tacit audit verify audit.jsonl
  tacit audit verify audit.jsonl.2 audit.jsonl.1 audit.jsonl
  tacit audit verify audit.jsonl --expect 1f0e3dad99908345f7439f8ffabdffc4...`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := audit.Verifier{Expect: expect}
			for _, name := range args {
				f, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("audit verify: %w", err)
				}
				err = v.Read(name, f)
				_ = f.Close()
				if err != nil {
					return fmt.Errorf("audit verify: %w", err)
				}
			}
			found := v.Verified()
			switch {
			case found.Records == 0:
				return fmt.Errorf("audit verify: no record in %v", args)
			case expect != "" && !found.Expected:
				return fmt.Errorf("audit verify: no record has the hash %s: the log was written anew, or its end or beginning is missing", expect)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d records, %d to %d, from %s to %s: nothing was changed\nhash of the last: %s\n",
				found.Records, found.First.Sequence, found.Last.Sequence,
				found.First.Time.Format(time.RFC3339), found.Last.Time.Format(time.RFC3339), found.Last.Hash)
			return nil
		},
	}
	cmd.Flags().StringVar(&expect, "expect", "", "`hash` that a record must have")
	return cmd
}
