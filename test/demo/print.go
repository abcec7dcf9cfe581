package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// printer writes for a person at a terminal. Its errors are of no interest:
// nobody is there to read then.
type printer struct {
	w     io.Writer
	color bool
}

const (
	bold  = "\x1b[1m"
	green = "\x1b[32m"
	red   = "\x1b[31m"
	dim   = "\x1b[2m"
	plain = "\x1b[0m"
)

func (p printer) print(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !p.color {
		for _, code := range []string{bold, green, red, dim, plain} {
			text = strings.ReplaceAll(text, code, "")
		}
	}
	_, _ = io.WriteString(p.w, text)
}

func (p printer) title(text string) { p.print("\n%s%s%s\n", bold, text, plain) }

func (p printer) step(n, of int, text string) { p.print("\n%s%d/%d  %s%s\n", bold, n, of, text, plain) }

func (p printer) say(format string, args ...any) { p.print("  "+format+"\n", args...) }

// proven marks a claim that was checked just now.
func (p printer) proven(format string, args ...any) {
	p.print("  %s✓%s "+format+"\n", append([]any{green, plain}, args...)...)
}

func (p printer) failed(err error) { p.print("  %s✗%s %v\n", red, plain, err) }

// took says how long something was, for who wonders.
func (p printer) took(d time.Duration) { p.print("  %s%.1f s%s\n", dim, d.Seconds(), plain) }

// command shows what is run, and where.
func (p printer) command(where, line string) { p.print("  %s%s$%s %s\n", dim, where, plain, line) }

// output shows what a program printed.
func (p printer) output(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		p.print("    %s%s%s\n", dim, strings.TrimRight(line, "\n"), plain)
	}
}

// table prints rows in columns.
func (p printer) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		p.print("  %s\n", b.String())
	}
}
