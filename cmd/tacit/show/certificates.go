package show

import (
	"fmt"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Certificate is one certificate of a node.
type Certificate struct {
	Node string
	admin.Certificate
}

// Certificates writes one line for each.
func (p Printer) Certificates(all []Certificate) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.Out, "No certificates: no pod is captured.")
		return err
	}
	rows := [][]string{p.wide([]string{"NODE", "IDENTITY", "ISSUER", "SERIAL", "ENDS", "RENEWAL", "FAILURES", "STATE"}, "BEGAN", "WHOLE SERIAL", "FOR")}
	for _, c := range all {
		rows = append(rows, p.wide([]string{
			c.Node, c.Identity, c.Issuer, serial(c.Serial), p.ends(c), p.renewal(c), fmt.Sprint(c.Failures), p.certificateState(c),
		}, moment(c.NotBefore), c.Serial, c.Selectors))
	}
	return p.table(rows)
}

// serial is enough of a serial number to tell certificates apart.
func serial(s string) string {
	const most = 16
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func (p Printer) ends(c Certificate) string {
	if c.NotAfter.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", c.NotAfter.UTC().Format(time.DateTime), p.when(c.NotAfter))
}

func (p Printer) renewal(c Certificate) string {
	if c.Renewal.IsZero() {
		return ""
	}
	return p.when(c.Renewal)
}

func (p Printer) when(t time.Time) string {
	if t.After(p.Now) {
		return "in " + age(t.Sub(p.Now))
	}
	return age(p.Now.Sub(t)) + " ago"
}

// certificateState says what of the certificate needs somebody's attention.
func (p Printer) certificateState(c Certificate) string {
	state := "valid"
	switch {
	case c.NotAfter.IsZero():
		state = "none yet"
	case !p.Now.Before(c.NotAfter):
		state = "ENDED"
	case p.Now.Before(c.NotBefore):
		state = "NOT VALID YET"
	case p.Now.After(c.Renewal):
		state = "RENEWAL OVERDUE"
	}
	if c.Error != "" {
		state += ": " + c.Error
	}
	return state
}
