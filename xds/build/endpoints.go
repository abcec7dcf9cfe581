package build

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// join makes a workload a member, or adds ports to its membership.
func join(w *model.Workload, key string, ports []model.Port) {
	if w.Services == nil {
		w.Services = map[string][]model.Port{}
	}
	have := w.Services[key]
	for _, p := range ports {
		if !slices.ContainsFunc(have, func(h model.Port) bool { return h.Service == p.Service }) {
			have = append(have, p)
		}
	}
	w.Services[key] = have
}

// podPorts are the service's ports as this pod has them. A named port that
// the pod lacks is left out.
func podPorts(svc *corev1.Service, pod *corev1.Pod) (out []model.Port) {
	for _, p := range svc.Spec.Ports {
		target, err := targetPort(p)
		if err == nil && target == 0 {
			target = namedPort(pod, p.TargetPort.StrVal)
		}
		port, portErr := tcpPort(p.Port)
		if isTCP(p.Protocol) && err == nil && portErr == nil && target != 0 {
			out = append(out, model.Port{Service: port, Target: target, AppProtocol: appProtocol(p)})
		}
	}
	return out
}

// namedPort looks a port up as Kubernetes does: in the containers, then in
// the init containers that keep running; 0 if there is none.
func namedPort(pod *corev1.Pod, name string) uint16 {
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Name == name && isTCP(p.Protocol) {
				if port, err := tcpPort(p.ContainerPort); err == nil {
					return port
				}
			}
		}
	}
	return 0
}

// slicePorts matches the service's ports with the slice's by name.
func slicePorts(svc *corev1.Service, slice *discoveryv1.EndpointSlice) (out []model.Port) {
	for _, p := range svc.Spec.Ports {
		port, err := tcpPort(p.Port)
		if !isTCP(p.Protocol) || err != nil {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Port == nil || sp.Protocol != nil && !isTCP(*sp.Protocol) || valueOr(sp.Name, "") != p.Name {
				continue
			}
			if target, err := tcpPort(*sp.Port); err == nil {
				out = append(out, model.Port{Service: port, Target: target, AppProtocol: appProtocol(p)})
			}
		}
	}
	return out
}

// usable endpoints are ready, or on their way out but still serving.
func usable(c discoveryv1.EndpointConditions) bool {
	return c.Ready == nil || *c.Ready || isTrue(c.Serving)
}

// foreignEndpoint is an address that is no pod's. It counts as one that
// shares its node's address, so that it is reached through services alone:
// whoever may write an EndpointSlice must not take over an address.
func foreignEndpoint(s Settings, slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, a netip.Addr, where model.Locality) *model.Workload {
	where.Zone = valueOr(e.Zone, where.Zone)
	return &model.Workload{
		UID:            s.Cluster + "/discovery.k8s.io/EndpointSlice/" + slice.Namespace + "/" + slice.Name + "/" + a.String(),
		Name:           slice.Name + "/" + a.String(),
		Namespace:      slice.Namespace,
		ServiceAccount: "default",
		TrustDomain:    s.TrustDomain,
		Addresses:      []netip.Addr{a},
		Node:           valueOr(e.NodeName, ""),
		ClusterID:      s.Cluster,
		Locality:       where,
		HostNetwork:    true,
		Capacity:       1,
		WorkloadType:   model.TypePod,
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
