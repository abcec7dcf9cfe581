package build

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Workloads are members of a service by its EndpointSlices where it has any,
// else by its selector.

// serviceEntry is a Service and what the mesh says of it.
type serviceEntry struct {
	object *corev1.Service
	told   *model.Service // nil for one that only renames another
}

// sliceEntry is an EndpointSlice, taken apart.
type sliceEntry struct {
	name    objectName
	object  *discoveryv1.EndpointSlice // nil once it is gone
	service objectName
	ports   []model.Port // as the service's ports are there
	targets []target
	foreign map[addr]*model.Workload // what the mesh says of addresses that are no pod's
}

// target is an endpoint that gets connections: a pod by name, else an address.
type target struct {
	endpoint *discoveryv1.Endpoint
	pod      objectName
	address  addr
}

func (t target) terminating() bool { return isTrue(t.endpoint.Conditions.Terminating) }

func (m *Mesh) setService(name objectName, svc *corev1.Service) {
	before := m.services[name]
	if before != nil && m.selecting[name.namespace][before] {
		m.selecting.remove(name.namespace, before)
		m.staleSelected(before)
	}
	delete(m.services, name)
	var errs []error
	now := &serviceEntry{object: svc}
	if svc != nil {
		now.told, errs = service(m.settings, svc)
		m.services[name] = now
	}
	m.problem("Service", name, errs)
	m.updateSelecting(name)
	for s := range m.slicesOf[name] {
		s.ports = m.portsOf(s)
		m.staleTargets(s.targets)
		m.stale.slices[s] = true
	}
	var told *model.Service
	if before != nil {
		told = before.told
	}
	switch {
	case now.told == nil && told != nil:
		m.stale.update.RemovedAddresses = append(m.stale.update.RemovedAddresses, told.Key())
		m.counts.Services--
	case now.told != nil && !reflect.DeepEqual(told, now.told):
		m.stale.update.Services = append(m.stale.update.Services, now.told)
		if told == nil {
			m.counts.Services++
		}
	}
}

// updateSelecting enters the service among those that select pods by labels,
// or takes it out. If that changes anything, the pods are derived again.
func (m *Mesh) updateSelecting(name objectName) {
	svc := m.services[name]
	if svc == nil {
		return
	}
	selects := svc.told != nil && len(svc.object.Spec.Selector) > 0 && len(m.slicesOf[name]) == 0
	switch {
	case selects == m.selecting[name.namespace][svc]:
		return
	case selects:
		m.selecting.add(name.namespace, svc)
	default:
		m.selecting.remove(name.namespace, svc)
	}
	m.staleSelected(svc)
}

func (m *Mesh) staleSelected(svc *serviceEntry) {
	for e := range m.podsIn[svc.object.Namespace] {
		if e.pod != nil && hasLabels(e.pod.Labels, svc.object.Spec.Selector) {
			m.stale.joins[e] = true
		}
	}
}

func (m *Mesh) staleTargets(targets []target) {
	for _, t := range targets {
		if t.address.IsValid() {
			maps.Copy(m.stale.joins, m.podsAt[t.address])
		} else if e := m.pods[t.pod]; e != nil {
			m.stale.joins[e] = true
		}
	}
}

func (m *Mesh) setSlice(name objectName, slice *discoveryv1.EndpointSlice) {
	s := m.slices[name]
	switch {
	case s != nil:
		m.file(s, false)
	case slice == nil:
		return
	default:
		s = &sliceEntry{name: name}
		m.slices[name] = s
	}
	before := *s
	var errs []error
	s.object, s.service, s.targets = slice, objectName{}, nil
	if slice != nil {
		s.service = objectName{name.namespace, slice.Labels[discoveryv1.LabelServiceName]}
		s.targets, errs = readTargets(slice)
		m.file(s, true)
	} else {
		delete(m.slices, name)
	}
	s.ports = m.portsOf(s)
	m.problem("EndpointSlice", name, errs)
	stale := slices.Concat(before.targets, s.targets)
	if s.service == before.service && slices.Equal(s.ports, before.ports) {
		stale = difference(before.targets, s.targets)
	}
	m.staleTargets(stale)
	m.stale.slices[s] = true
	m.updateSelecting(before.service)
	m.updateSelecting(s.service)
}

// file enters the slice into the indices, or takes it out of them.
func (m *Mesh) file(s *sliceEntry, in bool) {
	about, at, on, of := m.slicesAbout.remove, m.slicesAt.remove, m.slicesOn.remove, m.slicesOf.remove
	if in {
		about, at, on, of = m.slicesAbout.add, m.slicesAt.add, m.slicesOn.add, m.slicesOf.add
	}
	of(s.service, s)
	for _, t := range s.targets {
		if t.address.IsValid() {
			at(t.address, s)
			on(valueOr(t.endpoint.NodeName, ""), s)
		} else {
			about(t.pod, s)
		}
	}
}

func (m *Mesh) portsOf(s *sliceEntry) []model.Port {
	svc := m.services[s.service]
	if svc == nil || s.object == nil {
		return nil
	}
	return slicePorts(svc.object, s.object)
}

// readTargets are the usable endpoints of a slice. One that refers to a pod
// stands for nothing while that is not there; one that does not stands for
// the pod with its address, else for the address.
func readTargets(slice *discoveryv1.EndpointSlice) (out []target, errs []error) {
	if slice.Labels[discoveryv1.LabelServiceName] == "" {
		return nil, []error{fmt.Errorf("no label %s: belongs to no service", discoveryv1.LabelServiceName)}
	}
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, []error{fmt.Errorf("addressType: FQDN is not supported")}
	}
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if !usable(e.Conditions) {
			continue
		}
		// A pod is taken at its word in its own namespace alone: elsewhere
		// addresses say what kube-proxy makes of them.
		if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" && cmp.Or(ref.Namespace, slice.Namespace) == slice.Namespace {
			out = append(out, target{endpoint: e, pod: objectName{slice.Namespace, ref.Name}})
			continue
		}
		for _, address := range e.Addresses {
			a, err := parseAddress(address)
			if err == nil {
				out = append(out, target{endpoint: e, address: a})
				break
			}
			errs = append(errs, fmt.Errorf("endpoints: %w", err))
		}
	}
	return out, errs
}

// difference are the targets that are in one list only, or not the same in
// both.
func difference(before, now []target) (out []target) {
	type key struct {
		pod     objectName
		address addr
	}
	states := func(targets []target) map[key]int {
		out := make(map[key]int, len(targets))
		for _, t := range targets {
			k := key{t.pod, t.address}
			if out[k] |= 1; t.terminating() {
				out[k] |= 2
			}
		}
		return out
	}
	had, have := states(before), states(now)
	for _, t := range slices.Concat(before, now) {
		if k := (key{t.pod, t.address}); had[k] != have[k] {
			out = append(out, t)
		}
	}
	return out
}

// joinSlice makes the pod a member of the slice's service if an endpoint
// stands for it.
func (m *Mesh) joinSlice(w *model.Workload, e *podEntry, s *sliceEntry, key string) {
	for _, t := range s.targets {
		if t.pod == e.name && !t.address.IsValid() || t.address.IsValid() && !w.HostNetwork && w.HasAddress(t.address) && m.podAt(t.address) == e {
			// Others' services may lead to the pod, as by any address, but
			// whoever makes a slice must not empty services of others.
			w.Terminating = w.Terminating || t.terminating() && e.name.namespace == s.name.namespace
			join(w, key, s.ports)
		}
	}
}

// deriveForeign makes workloads of the addresses in a slice that are no
// pod's, and tells those that are others than before.
func (m *Mesh) deriveForeign(s *sliceEntry) {
	now := map[addr]*model.Workload{}
	if svc := m.services[s.service]; s.object != nil && svc != nil && svc.told != nil {
		for _, t := range s.targets {
			if !t.address.IsValid() || len(m.podsAt[t.address]) > 0 {
				continue
			}
			w := now[t.address]
			if w == nil {
				w = foreignEndpoint(m.settings, s.object, t.endpoint, t.address, m.nodes[valueOr(t.endpoint.NodeName, "")])
				now[t.address] = w
			}
			w.Terminating = w.Terminating || t.terminating()
			join(w, svc.told.Key(), s.ports)
		}
	}
	for a, before := range s.foreign {
		if now[a] == nil {
			m.stale.update.RemovedAddresses = append(m.stale.update.RemovedAddresses, before.UID)
		}
	}
	for a, w := range now {
		if !reflect.DeepEqual(s.foreign[a], w) {
			m.stale.update.Workloads = append(m.stale.update.Workloads, w)
		} else {
			now[a] = s.foreign[a]
		}
	}
	m.counts.Workloads += len(now) - len(s.foreign)
	s.foreign = now
}
