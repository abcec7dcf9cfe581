package proxy

import (
	"fmt"
	"slices"

	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/xds/model"
)

// workloadUID is by what the control plane calls a pod; empty if that is not
// known.
func (p *Proxy) workloadUID(facts sockets.Pod) string {
	if p.ClusterID == "" {
		return ""
	}
	return p.ClusterID + "//Pod/" + facts.Namespace + "/" + facts.Name
}

// workloadOf finds a pod of this node in a snapshot. An address may still
// belong to a predecessor there, whose policies are not this pod's.
func workloadOf(s *model.Snapshot, pod *pod) *model.Workload {
	if pod.workload != "" {
		// By nothing else: another cluster may have a namesake at the address.
		if w := s.Workload(pod.workload); w != nil && pod.is(w) && slices.ContainsFunc(pod.Addresses, w.HasAddress) {
			return w
		}
		return nil
	}
	for _, a := range pod.Addresses {
		if w := s.WorkloadAt(pod.network, a); w != nil && pod.is(w) {
			return w
		}
	}
	return nil
}

func (pod *pod) is(w *model.Workload) bool {
	return w.Name == pod.Name && w.Namespace == pod.Namespace && (w.PodUID == "" || w.PodUID == pod.UID)
}

// networkOf is the network in which a pod's addresses, and those that it calls,
// mean something.
func networkOf(s *model.Snapshot, pod *pod) string {
	if w := workloadOf(s, pod); w != nil {
		return w.Network
	}
	return pod.network
}

// placed reports whether the snapshot says in which network a pod is: looked up
// in another one, every address would be outside of the mesh.
func placed(s *model.Snapshot, pod *pod) bool {
	return s.AddressesReady() && (pod.workload == "" || workloadOf(s, pod) != nil)
}

// unplaced is the error of a pod that the control plane has not named in time.
func unplaced(pod *pod) error {
	return fmt.Errorf("the control plane has not named workload %s at %v, so its network is not known: compare --cluster-id with the control plane's", pod.workload, pod.Addresses)
}

// NodeNetwork is the network of the node's pods, as the control plane says, or
// else as configured.
func (p *Proxy) NodeNetwork() string {
	s := p.State.Snapshot()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range p.pods {
		if w := workloadOf(s, pod); w != nil {
			return w.Network
		}
	}
	return p.Network
}
