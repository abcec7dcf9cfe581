package show

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tacit-mesh/tacit/xds/kinds"
)

// Revocations writes one line for each, those in force first and of these the
// ones that end first.
func (p Printer) Revocations(all []*kinds.RevokedIdentity) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.Out, "No identity is or was revoked.")
		return err
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *kinds.RevokedIdentity) int {
		if a.Ended(p.Now) != b.Ended(p.Now) {
			if b.Ended(p.Now) {
				return -1
			}
			return 1
		}
		return cmp.Or(until(a).Compare(until(b)), cmp.Compare(a.Name, b.Name))
	})
	rows := [][]string{p.wide([]string{"IDENTITY", "STATE", "SINCE", "BY", "REASON"}, "NAME", "UNTIL")}
	for _, r := range all {
		since, end := "", "never"
		if r.Spec.Since != nil {
			since = moment(r.Spec.Since.Time)
		}
		if r.Spec.Until != nil {
			end = moment(r.Spec.Until.Time)
		}
		rows = append(rows, p.wide([]string{r.Spec.Identity, p.revocationState(r), since, r.Spec.By, r.Spec.Reason}, r.Name, end))
	}
	return p.table(rows)
}

// until orders what never ends last.
func until(r *kinds.RevokedIdentity) time.Time {
	if r.Spec.Until == nil {
		return time.Unix(1<<40, 0)
	}
	return r.Spec.Until.Time
}

func (p Printer) revocationState(r *kinds.RevokedIdentity) string {
	switch {
	case r.Spec.RestoredBy != "" && r.Ended(p.Now):
		return "restored " + p.when(r.Spec.Until.Time) + " by " + r.Spec.RestoredBy
	case r.Ended(p.Now):
		return "ended " + p.when(r.Spec.Until.Time)
	}
	state := "revoked"
	if r.Spec.Until != nil {
		state += ", ends " + p.when(r.Spec.Until.Time)
	}
	return state + enforcement(r.Status)
}

// enforcement is what the control plane says, where that is not that all is
// enforced as written.
func enforcement(status any) string {
	fields, _ := status.(map[string]any)
	conditions, _ := fields["conditions"].([]any)
	for _, c := range conditions {
		if c, _ := c.(map[string]any); c["type"] == "tacit.mesh/Enforced" && c["status"] != "True" {
			return fmt.Sprintf(": %v", c["message"])
		}
	}
	return ""
}
