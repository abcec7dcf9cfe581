package spire

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/tacit-mesh/tacit/identity"
)

// Selectors are what SPIRE's k8s workload attestor would say about a pod, one
// a line (https://github.com/spiffe/spire/blob/v1.13.3/doc/plugin_agent_workloadattestor_k8s.md).
// That one looks at the container of a process; of which container a connection
// is cannot be told, so an entry for one of them is for the pod. Of images'
// signatures nothing is known here.
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
	for _, o := range pod.Owners {
		all = append(all, "pod-owner:"+o.Kind+":"+o.Name, "pod-owner-uid:"+o.Kind+":"+o.UID)
	}
	all = append(all, ofContainers(pod)...)
	// The API lets names of owners and images contain what separates selectors
	// here: whoever makes a pod must not make selectors by that.
	all = slices.DeleteFunc(all, func(selector string) bool { return strings.Contains(selector, "\n") })
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "\n")
}

// ofContainers is nothing at all as long as the kubelet has said nothing.
func ofContainers(pod identity.Pod) (all []string) {
	if len(pod.Containers) == 0 {
		return nil
	}
	count := map[bool]int{}
	for _, c := range pod.Containers {
		count[c.Init]++
		kind := "pod-image:"
		if c.Init {
			kind = "pod-init-image:"
		}
		if c.Started {
			all = append(all, "container-name:"+c.Name)
		}
		for _, image := range []string{c.Image, c.ImageID} {
			if image == "" {
				continue
			}
			all = append(all, kind+image)
			if c.Started {
				all = append(all, "container-image:"+image)
			}
		}
	}
	return append(all, fmt.Sprintf("pod-image-count:%d", count[false]), fmt.Sprintf("pod-init-image-count:%d", count[true]))
}

func parseSelectors(text string) []*types.Selector {
	var all []*types.Selector
	for line := range strings.Lines(text) {
		all = append(all, &types.Selector{Type: "k8s", Value: strings.TrimSuffix(line, "\n")})
	}
	return all
}
