package admin

import (
	"cmp"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// suggestions is how many names are suggested for one that there is not.
const suggestions = 3

// didYouMean suggests names of pods, their owners and namespaces that are
// written much like one that there is not; it is empty if none is.
func didYouMean(s *model.Snapshot, name string) string {
	names := map[string]struct{}{}
	for _, w := range s.Workloads() {
		names[w.Namespace+"/"+w.Name] = struct{}{}
		names[w.Namespace+"/"] = struct{}{}
		if w.WorkloadName != "" {
			names[w.Namespace+"/"+w.WorkloadName] = struct{}{}
		}
	}
	near := nearest(names, name)
	if len(near) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(near, ", ") + "?"
}

// nearest are the names that differ from one the least, and by no more than a
// third of it.
func nearest(names map[string]struct{}, name string) []string {
	type candidate struct {
		name     string
		distance int
	}
	var near []candidate
	for other := range names {
		most := max(2, len(name)/3)
		_, bare, _ := strings.Cut(other, "/")
		if bare == name { // it lacks nothing but its namespace
			near = append(near, candidate{other, 0})
			continue
		}
		lacks := strings.HasPrefix(other, name) || strings.HasPrefix(bare, name+"-") // the hash of a ReplicaSet, say
		if abs(len(other)-len(name)) > most && !lacks {
			continue
		}
		if d := distance(name, other); d <= most || lacks {
			near = append(near, candidate{other, d})
		}
	}
	slices.SortFunc(near, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name))
	})
	var out []string
	for _, c := range near[:min(len(near), suggestions)] {
		out = append(out, c.name)
	}
	return out
}

func abs(n int) int { return max(n, -n) }

// distance is Levenshtein's: how many bytes must be put in, taken out or
// replaced.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
