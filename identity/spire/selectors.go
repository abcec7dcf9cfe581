package spire

import (
	"slices"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/tacit-mesh/tacit/identity"
)

// Selectors are what SPIRE's k8s workload attestor would say about a pod, one
// a line: ns, sa, node-name, pod-name, pod-uid and pod-label. What concerns
// single containers, and the pod's images and owners, is not known here:
// entries must not ask for it.
func Selectors(pod identity.Pod) string {
	all := []string{"ns:" + pod.Identity.Namespace, "sa:" + pod.Identity.ServiceAccount}
	for kind, value := range map[string]string{"node-name": pod.Node, "pod-name": pod.Name, "pod-uid": pod.UID} {
		if value != "" {
			all = append(all, kind+":"+value)
		}
	}
	for name, value := range pod.Labels {
		all = append(all, "pod-label:"+name+":"+value)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func parseSelectors(text string) []*types.Selector {
	var all []*types.Selector
	for line := range strings.Lines(text) {
		all = append(all, &types.Selector{Type: "k8s", Value: strings.TrimSuffix(line, "\n")})
	}
	return all
}
