package show

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// The escape sequences of a terminal, ECMA-48.
const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	amber = "\x1b[33m"
	reset = "\x1b[0m"
)

func (p Printer) paint(color, s string) string {
	if !p.Color {
		return s
	}
	return color + s + reset
}

func (p Printer) bold(s string) string { return p.paint(bold, s) }

// Explanation writes each step with a mark, then the outcome and what would
// change it.
func (p Printer) Explanation(e admin.Explanation) error {
	var out bytes.Buffer
	stage := ""
	for _, s := range e.Steps {
		if s.Stage == "outcome" {
			continue // said below
		}
		name := s.Stage
		if name == stage {
			name = ""
		}
		stage = s.Stage
		fmt.Fprintf(&out, "%s %-11s  %s\n", p.mark(s.Mark), clean(name), clean(s.Text))
	}
	fmt.Fprintf(&out, "\n%s  %s\n", p.outcome(e.Outcome), clean(e.Summary))
	if e.Change != "" {
		fmt.Fprintf(&out, "To change it: %s\n", clean(e.Change))
	}
	_, err := p.Out.Write(out.Bytes())
	return err
}

func (p Printer) mark(m string) string {
	switch m {
	case "ok":
		return p.paint(green, "✓")
	case "stop":
		return p.paint(red, "✗")
	}
	return p.paint(amber, "•")
}

func (p Printer) outcome(o admin.Outcome) string {
	color := amber
	switch o {
	case admin.Allowed:
		color = green
	case admin.Denied:
		color = red
	case admin.Unchecked, admin.Depends:
	}
	return p.paint(bold+color, strings.ToUpper(clean(string(o))))
}
