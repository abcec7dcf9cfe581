package show

import (
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/sight/traffic"
)

// Rates writes a line for each pair, as in an order that was chosen before.
func (p Printer) Rates(all []traffic.Rate) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.Out, "Nothing happens.")
		return err
	}
	rows := [][]string{{"SOURCE", "DESTINATION", "SECURITY", "LIVE", "CONN/S", "REQ/S", "BYTES/S", "MEDIAN", "P99", "DENIED", "FAILED"}}
	for _, r := range all {
		security := r.Security
		if r.Why != "" {
			security += " (" + strings.ReplaceAll(r.Why, "_", " ") + ")"
		}
		rows = append(rows, []string{
			Party(r.Source), Party(r.Destination), security, count(r.Live), fmt.Sprintf("%.1f", r.Connections), fmt.Sprintf("%.1f", r.Requests),
			size(uint64(r.Bytes)), micros(r.Median), micros(r.P99), count(r.Denied), count(r.Failed),
		})
	}
	return p.table(rows)
}

// micros is the upper end of a bucket of durations.
func micros(n uint64) string {
	switch {
	case n == 0:
		return ""
	case n < 1000:
		return fmt.Sprintf("<%d µs", n)
	case n < 1_000_000:
		return fmt.Sprintf("<%.1f ms", float64(n)/1e3)
	}
	return fmt.Sprintf("<%.1f s", float64(n)/1e6)
}
