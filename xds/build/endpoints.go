package build

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tacit-mesh/tacit/xds/model"
)

// services translates the Services and makes workloads members of them: by
// EndpointSlices where the service has any, else by its selector.
func (b *builder) services(services []*corev1.Service, slicesOfAll []*discoveryv1.EndpointSlice) {
	slicesOf := map[objectName][]*discoveryv1.EndpointSlice{}
	for _, s := range slicesOfAll {
		name := objectName{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
		if name.name == "" {
			b.problem("EndpointSlice", s.Namespace, s.Name, fmt.Errorf("no label %s: belongs to no service", discoveryv1.LabelServiceName))
			continue
		}
		slicesOf[name] = append(slicesOf[name], s)
	}
	podsOf := map[string][]*podEntry{}
	for _, e := range b.podList {
		podsOf[e.pod.Namespace] = append(podsOf[e.pod.Namespace], e)
	}
	for _, svc := range services {
		out, errs := service(b.settings, svc)
		b.problem("Service", svc.Namespace, svc.Name, errs...)
		if out == nil {
			continue
		}
		b.result.Services = append(b.result.Services, out)
		if list := slicesOf[objectName{svc.Namespace, svc.Name}]; len(list) > 0 {
			for _, slice := range list {
				b.joinSlice(out, svc, slice)
			}
		} else {
			joinSelected(out, svc, podsOf[svc.Namespace])
		}
	}
}

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

func joinSelected(out *model.Service, svc *corev1.Service, pods []*podEntry) {
	if len(svc.Spec.Selector) == 0 {
		return
	}
	selector := labels.SelectorFromSet(svc.Spec.Selector)
	for _, e := range pods {
		if selector.Matches(labels.Set(e.pod.Labels)) {
			join(e.workload, out.Key(), podPorts(svc, e.pod))
		}
	}
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

func (b *builder) joinSlice(out *model.Service, svc *corev1.Service, slice *discoveryv1.EndpointSlice) {
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		b.problem("EndpointSlice", slice.Namespace, slice.Name, fmt.Errorf("addressType: FQDN is not supported"))
		return
	}
	ports := slicePorts(svc, slice)
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if !usable(e.Conditions) {
			continue
		}
		w := b.endpoint(slice, e)
		if w == nil {
			continue
		}
		w.Terminating = w.Terminating || isTrue(e.Conditions.Terminating)
		join(w, out.Key(), ports)
	}
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

// endpoint finds the workload behind an endpoint: the pod that it refers to,
// the pod with its address, or one made for it. Nil if it refers to what is
// no longer, or not yet, there.
func (b *builder) endpoint(slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) *model.Workload {
	if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
		if p := b.podByName[objectName{cmp.Or(ref.Namespace, slice.Namespace), ref.Name}]; p != nil {
			return p.workload
		}
		return nil
	}
	for _, address := range e.Addresses {
		a, err := parseAddress(address)
		if err != nil {
			b.problem("EndpointSlice", slice.Namespace, slice.Name, fmt.Errorf("endpoints: %w", err))
			continue
		}
		if p := b.podByIP[a.String()]; p != nil {
			return p.workload
		}
		return b.foreignEndpoint(slice, e, a)
	}
	return nil
}

// foreignEndpoint is an address that is no pod's. It counts as one that
// shares its node's address, so that it is reached through services alone:
// whoever may write an EndpointSlice must not take over an address.
func (b *builder) foreignEndpoint(slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, a netip.Addr) *model.Workload {
	uid := b.settings.Cluster + "/discovery.k8s.io/EndpointSlice/" + slice.Namespace + "/" + slice.Name + "/" + a.String()
	if w := b.foreign[uid]; w != nil {
		return w
	}
	node := valueOr(e.NodeName, "")
	where := b.nodes[node]
	where.Zone = valueOr(e.Zone, where.Zone)
	w := &model.Workload{
		UID:            uid,
		Name:           slice.Name + "/" + a.String(),
		Namespace:      slice.Namespace,
		ServiceAccount: "default",
		TrustDomain:    b.settings.TrustDomain,
		Addresses:      []netip.Addr{a},
		Node:           node,
		ClusterID:      b.settings.Cluster,
		Locality:       where,
		HostNetwork:    true,
		Capacity:       1,
		WorkloadType:   model.TypePod,
	}
	b.foreign[uid] = w
	return w
}

func isTrue(b *bool) bool { return b != nil && *b }

func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
