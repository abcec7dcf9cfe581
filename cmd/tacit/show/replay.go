package show

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/cmd/tacit/replay"
)

// Replay writes what would come out otherwise, then how much would not.
func (p Printer) Replay(r replay.Result) error {
	rows := [][]string{}
	for _, row := range r.Rows {
		from, to := row.Source.Name, fmt.Sprintf("%s/%s:%d", row.Destination.Namespace, row.Destination.Name, row.Port)
		if row.Source.Namespace != "" {
			from = row.Source.Namespace + "/" + from
		}
		rows = append(rows, []string{strings.ReplaceAll(string(row.Change), "_", " "), strconv.Itoa(row.Flows), from, to, row.Method, row.Why, row.ID})
	}
	if err := p.table(headed(rows, "CHANGE", "FLOWS", "SOURCE", "DESTINATION", "METHOD", "WHY", "ID OF THE LAST")); err != nil {
		return err
	}
	if len(rows) > 0 {
		fmt.Fprintln(p.Out)
	}
	_, err := fmt.Fprintf(p.Out, "%d flows replayed: %d newly denied, %d newly allowed, %d that cannot be told, %d unchanged.\n",
		r.Replayed, r.Count(replay.NewlyDenied), r.Count(replay.NewlyAllowed), r.Count(replay.Untold), r.Unchanged)
	return err
}
