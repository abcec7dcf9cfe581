//go:build !inpod

package show

import (
	"fmt"
	"io"
	"time"

	"github.com/tacit-mesh/tacit/identity/ca"
)

// whatHappens says of each phase what it is for.
var whatHappens = []struct {
	phase ca.Phase
	text  string
}{
	{ca.Distribute, "the new root is handed out beside the old one, which signs"},
	{ca.Overlap, "the new root signs; the old one is kept for what it has signed"},
	{ca.Retire, "the old root is not handed out any more, and is forgotten"},
}

// RotationPlan says what a rotation would do, or what is left of the one that
// is under way.
func (p Printer) RotationPlan(s ca.Status) error {
	begin, from, to := p.Now, s.Signer.Name, "a new root"
	left := whatHappens
	if r := s.Rotation; r.Active() {
		from, to = r.From, r.To
		for left[0].phase != r.Phase && len(left) > 1 {
			left = left[1:]
		}
		if begin = r.Until.Add(-s.Phase); r.Until.Before(p.Now) {
			begin = p.Now.Add(-s.Phase)
		}
		if _, err := fmt.Fprintf(p.Out, "A rotation is under way, since %s.\n", r.Began.UTC().Format(time.DateTime)); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(p.Out, "Nothing is changed (--dry-run). %s, which ends on %s, would be replaced:\n", from, s.Signer.NotAfter.UTC().Format(time.DateOnly)); err != nil {
		return err
	}
	rows := [][]string{{"PHASE", "UNTIL ABOUT", "WHAT HAPPENS"}}
	for i, w := range left {
		begin = begin.Add(s.Phase)
		if i == 0 && !s.Rotation.Active() && begin.Before(s.LongerUntil) {
			begin = s.LongerUntil
		}
		rows = append(rows, []string{string(w.phase), fmt.Sprintf("%s (%s)", begin.UTC().Format(time.DateTime), p.when(begin)), w.text})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(p.Out, "from  %s\nto    %s\n", from, to); err != nil {
		return err
	}
	if !s.Rotation.Active() || s.Rotation.Nodes == nil {
		return nil
	}
	_, err := fmt.Fprintln(p.Out, nodesText(*s.Rotation, p.Now))
	return err
}

// nodesText says how many nodes have the new root, and which do not.
func nodesText(r ca.Rotation, at time.Time) string {
	p := r.Nodes
	text := fmt.Sprintf("%d of %d nodes have the new root", p.Have, p.Of)
	for _, b := range p.Behind {
		text += fmt.Sprintf("\n  not yet %s: %s", b.Node, b.Why)
	}
	if more := p.Of - p.Have - len(p.Behind); more > 0 {
		text += fmt.Sprintf("\n  not yet %d more", more)
	}
	if p.Have < p.Of && !r.LeaveBehind && !at.Before(r.Until) {
		text += "\nthe rotation waits for them; --leave-behind has it go on without"
	}
	return text
}

// Rotation shows how far a rotation is: a line for each phase, and on a
// terminal how long the present one still lasts.
type Rotation struct {
	out     io.Writer
	width   int // of the terminal; 0 for none
	phase   ca.Phase
	nodes   string // as shown last
	problem string
	pending bool // the last line is to be drawn over
}

// NewRotation writes to out, which is a terminal if it has a width.
func NewRotation(out io.Writer, width int) *Rotation { return &Rotation{out: out, width: width} }

// Show takes the newest state.
func (r *Rotation) Show(now ca.Rotation, at time.Time) {
	r.problem = ""
	if r.phase == "" {
		r.line(fmt.Sprintf("from  %s\nto    %s", now.From, now.To))
	}
	if now.Phase != r.phase {
		r.phase = now.Phase
		r.line(phaseLine(now))
	}
	if now.Nodes != nil {
		if text := nodesText(now, at); text != r.nodes {
			r.nodes = text
			r.line(text)
		}
	}
	if r.width == 0 || !now.Active() {
		return
	}
	text := "            " + age(max(0, now.Until.Sub(at))) + " left"
	fmt.Fprintf(r.out, "\r\x1b[2K%s", text[:min(len(text), r.width-1)])
	r.pending = true
}

func phaseLine(r ca.Rotation) string {
	for _, w := range whatHappens {
		if w.phase == r.Phase {
			return fmt.Sprintf("%-10s  until %s: %s", r.Phase, r.Until.UTC().Format(time.DateTime), w.text)
		}
	}
	if r.Phase == ca.Abandoned {
		return fmt.Sprintf("%-10s  the CA was replaced", r.Phase)
	}
	return fmt.Sprintf("%-10s  nobody knows the old root any more", r.Phase)
}

// Problem says, once, why the state is not known.
func (r *Rotation) Problem(err error) {
	if err.Error() != r.problem {
		r.problem = err.Error()
		r.line("waiting: " + r.problem)
	}
}

func (r *Rotation) line(text string) {
	if r.pending {
		fmt.Fprint(r.out, "\r\x1b[2K")
		r.pending = false
	}
	fmt.Fprintln(r.out, text)
}
