package check

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes each finding on a line, what to do about it on the next one,
// and a summary; what is fine only if all is wanted.
func (r Report) Print(out io.Writer, all bool) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	count := map[Level]int{}
	fmt.Fprintln(table, "LEVEL\tTOPIC\tSUBJECT\tFINDING")
	for _, f := range r.Findings {
		count[f.Level]++
		if f.Level == Fine && !all {
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", f.Level, f.Topic, f.Subject, f.Text)
		if f.Do != "" {
			fmt.Fprintf(table, "\t\t\t→ %s\n", f.Do)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%d broken, %d risky, %d unknown, %d fine.\n", count[Broken], count[Risky], count[Unknown], count[Fine])
	return err
}
