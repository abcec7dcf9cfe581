package show

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tacit-mesh/tacit/proxy/flows"
)

// The columns of flows. A node has one where several are shown.
var (
	flowColumns = []string{"TIME", "KIND", "DIRECTION", "SOURCE", "DESTINATION", "SECURITY", "OUTCOME", "WHAT"}
	// wideColumns stand before the last in wide tables.
	wideColumns = []string{"ID", "IDENTITY", "POLICY"}
	// flowWidths are those of lines that are shown as they come.
	flowWidths = []int{12, 7, 9, 24, 30, 8, 7, 0}
	wideWidths = []int{32, 44, 24}
)

const outcomeColumn = 6

// Flows writes one line for each.
func (p Printer) Flows(all []flows.Flow, nodes bool) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.Out, "No such flows.")
		return err
	}
	rows := [][]string{}
	widths := make([]int, len(flowColumns)+len(wideColumns)+1)
	measure := func(row []string) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	heading := withNode(p.wideFlow(flowColumns, wideColumns), "NODE", nodes)
	measure(heading)
	for _, f := range all {
		row := withNode(p.flowCells(f), dash(clean(f.Node)), nodes)
		measure(row)
		rows = append(rows, row)
	}
	var out bytes.Buffer
	out.WriteString(line(heading, widths) + "\n")
	for i, f := range all {
		out.WriteString(p.flowLine(rows[i], widths, f.Outcome, nodes) + "\n")
	}
	_, err := p.Out.Write(out.Bytes())
	return err
}

// Flow writes one line as it comes, the first below a heading.
func (p Printer) Flow(f flows.Flow, nodes, first bool) error {
	widths := flowWidths
	if p.Wide {
		widths = slices.Insert(slices.Clone(widths), len(widths)-1, wideWidths...)
	}
	if nodes {
		widths = append([]int{12}, widths...)
	}
	text := ""
	if first {
		text = p.bold(line(withNode(p.wideFlow(flowColumns, wideColumns), "NODE", nodes), widths)) + "\n"
	}
	text += p.flowLine(withNode(p.flowCells(f), dash(clean(f.Node)), nodes), widths, f.Outcome, nodes) + "\n"
	_, err := fmt.Fprint(p.Out, text)
	return err
}

// Partial says which nodes gave no answer, if any did not.
func (p Printer) Partial(nodes []string, asked int) error {
	if len(nodes) == 0 {
		return nil
	}
	text := fmt.Sprintf("PARTIAL: %d of %d nodes gave no answer: %s.", len(nodes), asked, clean(strings.Join(nodes, ", ")))
	_, err := fmt.Fprintln(p.Out, p.paint(bold+red, text))
	return err
}

func withNode(cells []string, node string, nodes bool) []string {
	if !nodes {
		return cells
	}
	return append([]string{node}, cells...)
}

func (p Printer) flowLine(cells []string, widths []int, outcome string, nodes bool) string {
	at := outcomeColumn
	if nodes {
		at++
	}
	painted := make([]string, len(cells))
	for i, cell := range cells {
		painted[i] = pad(cell, widths[i])
	}
	switch outcome {
	case "denied":
		painted[at] = p.paint(red, painted[at])
	case "failed", "reset":
		painted[at] = p.paint(amber, painted[at])
	}
	return strings.TrimRight(strings.Join(painted, "  "), " ")
}

func line(cells []string, widths []int) string {
	padded := make([]string, len(cells))
	for i, cell := range cells {
		padded[i] = pad(cell, widths[i])
	}
	return strings.TrimRight(strings.Join(padded, "  "), " ")
}

func pad(cell string, width int) string {
	return cell + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(cell)))
}

func dash(cell string) string {
	if cell == "" {
		return "-"
	}
	return cell
}

// wideFlow puts what only wide tables have before the last cell.
func (p Printer) wideFlow(row, more []string) []string {
	if !p.Wide {
		return row
	}
	return slices.Insert(slices.Clone(row), len(row)-1, more...)
}

func (p Printer) flowCells(f flows.Flow) []string {
	cells := []string{
		f.Time.UTC().Format("15:04:05.000"), f.Kind, f.Direction, peer(f.Source, false), peer(f.Destination, true), f.Security, f.Outcome, what(f),
	}
	cells = p.wideFlow(cells, []string{f.ID, f.Source.Identity, f.Policy})
	for i, cell := range cells {
		cells[i] = dash(clean(cell))
	}
	return cells
}

func peer(e flows.Peer, port bool) string {
	switch {
	case e.Pod == "" && !e.Address.IsValid():
		return ""
	case e.Pod == "" && port:
		return e.Address.String()
	case e.Pod == "":
		return e.Address.Addr().String()
	case port:
		return fmt.Sprintf("%s/%s:%d", e.Namespace, e.Pod, e.Address.Port())
	}
	return e.Namespace + "/" + e.Pod
}

// what is everything else about a flow that there is to say.
func what(f flows.Flow) string {
	var parts []string
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if f.Weight > 1 {
		say("×%d", f.Weight)
	}
	if h := f.HTTP; h != nil {
		say("%s %s%s → %s in %s", h.Method, h.Host, h.Path, status(h.Status), took(f.Time.Sub(f.Began)))
	} else if f.Kind != "opened" {
		say("%s sent, %s received in %s", size(uint64(max(f.Sent, 0))), size(uint64(max(f.Received, 0))), took(f.Time.Sub(f.Began)))
	}
	if f.Service != "" {
		say("by %s", f.Service)
	}
	if f.Why != "" {
		say("not mTLS: %s", strings.ReplaceAll(f.Why, "_", " "))
	}
	switch {
	case f.Error != "":
		say("%s", f.Error)
	case f.Outcome == "denied" && f.Policy != "":
		say("denied by policy %s (%s)", f.Policy, f.Reason)
	}
	if f.Outcome == "denied" || f.Outcome == "failed" {
		say("tacit explain %s", f.ID)
	}
	return strings.Join(parts, "; ")
}

func status(code int) string {
	if code == 0 {
		return "no answer"
	}
	return strconv.Itoa(code)
}

// took is a short time to three digits.
func took(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return age(d)
}
