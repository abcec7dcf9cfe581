package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/internal/bypass"
)

// Bypasses writes one line for each, those in force first and of these the
// ones that end first.
func (p Printer) Bypasses(all []*bypass.Bypass) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.Out, "Nothing is or was bypassed.")
		return err
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *bypass.Bypass) int {
		if p.over(a) != p.over(b) {
			if p.over(b) {
				return -1
			}
			return 1
		}
		return cmp.Or(bypassEnd(a).Compare(bypassEnd(b)), strings.Compare(a.String(), b.String()))
	})
	rows := [][]string{p.wide([]string{"FOR", "STATE", "SINCE", "BY", "REASON"}, "NAME", "UNTIL")}
	for _, b := range all {
		since := moment(b.Begin())
		about := b.Namespace
		if b.Spec.Pod != "" {
			about += "/" + b.Spec.Pod
		}
		rows = append(rows, p.wide([]string{about, p.bypassState(b), since, b.Spec.By, b.Spec.Reason}, b.String(), moment(bypassEnd(b))))
	}
	return p.table(rows)
}

// moment is none where it is not said.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateTime)
}

func (p Printer) over(b *bypass.Bypass) bool { return !p.Now.Before(bypassEnd(b)) }

// bypassEnd of one that says none is long ago: it is never in force.
func bypassEnd(b *bypass.Bypass) time.Time {
	if b.Spec.Until == nil {
		return time.Time{}
	}
	return b.Spec.Until.Time
}

func (p Printer) bypassState(b *bypass.Bypass) string {
	switch {
	case b.Spec.Until == nil:
		return "never in force: it has no end"
	case p.over(b) && b.Spec.EndedBy != "":
		return "ended " + p.when(bypassEnd(b)) + " by " + b.Spec.EndedBy
	case p.over(b):
		return "ended " + p.when(bypassEnd(b))
	}
	state := "bypassed"
	if b.Spec.PolicyOnly {
		state = "policies bypassed"
	}
	return state + ", ends " + p.when(bypassEnd(b)) + enforcement(b.Status)
}
