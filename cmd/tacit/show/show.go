// Package show turns the proxy's answers into text for a person: aligned
// tables, steps with marks, colours on a terminal.
//
// What does not belong here: asking the proxy, and flags (cmd/tacit).
package show

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Printer writes to Out as seen at Now. Its methods return the first error
// of writing.
type Printer struct {
	Out   io.Writer
	Now   time.Time
	Color bool // Out is a terminal that shows colours
	Wide  bool // tables show all that there is to say
}

// Connections writes one line for each.
func (p Printer) Connections(all []admin.Connection) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.Out, "No such connections.")
		return err
	}
	rows := [][]string{p.wide([]string{"ID", "DIRECTION", "SOURCE", "DESTINATION", "SECURITY", "SENT", "RECEIVED", "AGE", "STATE"},
		"FROM", "IDENTITY", "TO", "ORIGINAL", "POLICY")}
	for _, c := range all {
		rows = append(rows, p.wide([]string{
			c.ID, c.Direction, source(c.Source), destination(c), c.Security,
			size(c.Sent), size(c.Received), age(p.Now.Sub(c.Since)), state(c),
		}, address(c.Source.Address), c.Source.Identity, address(c.Destination.Address), address(c.Original), c.Policy))
	}
	return p.table(rows)
}

func source(e admin.End) string {
	if e.Workload != "" {
		return e.Workload
	}
	return address(e.Address)
}

func destination(c admin.Connection) string {
	to := c.Destination
	text := address(to.Address)
	if to.Workload != "" {
		text = fmt.Sprintf("%s:%d", to.Workload, to.Address.Port())
	}
	if to.Service != "" {
		text = fmt.Sprintf("%s (%s:%d)", text, to.Service, c.Original.Port())
	}
	return text
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func state(c admin.Connection) string {
	switch {
	case c.Denied && c.Reason != "":
		return c.Reason // says itself that it is a denial
	case c.Denied:
		return "denied"
	case c.Ended.IsZero():
		return "alive"
	case c.Reason != "":
		return "ended: " + c.Reason
	}
	return "ended"
}

// wide is a row with what only wide tables have.
func (p Printer) wide(row []string, more ...string) []string {
	if p.Wide {
		return append(row, more...)
	}
	return row
}

// table aligns rows in columns; an empty cell is a dash.
func (p Printer) table(rows [][]string) error {
	out := tabwriter.NewWriter(p.Out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if row[i] = clean(cell); row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(out, strings.Join(row, "\t"))
	}
	return out.Flush()
}

// clean takes out what could steer a terminal: some of what is shown was
// said by peers.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// age is a duration in its largest two units.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}
