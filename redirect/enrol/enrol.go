// Package enrol says which pods are to be captured: the rule that the agent
// and the CNI plugin share, each with its own view of the cluster.
//
// What does not belong here: how a pod is captured, and where its labels come
// from.
package enrol

// Label, on a namespace or a pod, opts in ([Enabled]); any other value on a
// pod opts that pod out.
const (
	Label   = "tacit.mesh/dataplane"
	Enabled = "enabled"
)

// Wanted reports whether a pod is to be captured, by its labels and those of
// its namespace.
func Wanted(pod, namespace map[string]string) bool {
	if value, ok := pod[Label]; ok {
		return value == Enabled
	}
	return namespace[Label] == Enabled
}
