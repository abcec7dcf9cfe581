package build

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// podEntry is a pod and the workload that it becomes.
type podEntry struct {
	name objectName
	pod  *corev1.Pod // nil once it is gone or finished
	// alone is the workload without what other objects say of it.
	alone     *model.Workload
	permitted bool
	// workload is what the mesh says; nil if the pod is not running yet.
	workload *model.Workload
}

type addr = netip.Addr

func (m *Mesh) setNamespace(name string, ns *corev1.Namespace) {
	before := m.namespaces[name]
	if before != nil && ns != nil && maps.Equal(before.Labels, ns.Labels) && maps.Equal(before.Annotations, ns.Annotations) {
		return
	}
	if m.namespaces[name] = ns; ns == nil {
		delete(m.namespaces, name)
	}
	maps.Copy(m.stale.pods, m.podsIn[name])
}

func (m *Mesh) setNode(name string, node *corev1.Node) {
	where := model.Locality{}
	if node != nil {
		where = locality(node.Labels)
	}
	before := m.nodes[name]
	if m.nodes[name] = where; node == nil {
		delete(m.nodes, name)
	}
	if where != before {
		maps.Copy(m.stale.pods, m.podsOn[name])
		maps.Copy(m.stale.slices, m.slicesOn[name])
	}
}

func (m *Mesh) setPod(name objectName, pod *corev1.Pod) {
	if pod != nil && finished(pod) {
		pod = nil
	}
	e := m.pods[name]
	if e == nil {
		if pod == nil {
			return
		}
		e = &podEntry{name: name}
		m.pods[name] = e
		m.podsIn.add(name.namespace, e)
	}
	if m.policies.setPortNames(name.namespace, e.pod, pod) {
		m.stale.namespace[name.namespace] = true
	}
	e.pod = pod
	m.stale.pods[e] = true
}

// derive translates the pod by itself.
func (m *Mesh) derive(e *podEntry) {
	m.claim(e, false)
	var errs []error
	e.alone = nil
	if e.pod != nil {
		ns := m.namespaces[e.name.namespace]
		e.alone, errs = podWorkload(m.settings, e.pod, ns, m.nodes[e.pod.Spec.NodeName])
		e.permitted = inMesh(e.pod, ns) && e.alone.Node != ""
		m.bypass(e)
	}
	m.problem("Pod", e.name, errs)
	m.claim(e, true)
	m.stale.joins[e] = true
	m.statuses = nil
}

// claim enters the pod into the indices, or takes it out of them. Who has an
// address may then be another pod, or none.
func (m *Mesh) claim(e *podEntry, claims bool) {
	w := e.alone
	if w == nil {
		return
	}
	change := index[addr, *podEntry].add
	if claims {
		m.podsOn.add(w.Node, e)
		m.permit(e, 1)
	} else {
		change = index[addr, *podEntry].remove
		m.podsOn.remove(w.Node, e)
		m.permit(e, -1)
	}
	if w.HostNetwork {
		return
	}
	for _, a := range w.Addresses {
		change(m.podsAt, a, e)
		if about := m.slicesAt[a]; len(about) > 0 {
			maps.Copy(m.stale.slices, about)
			maps.Copy(m.stale.joins, m.podsAt[a])
		}
	}
}

func (m *Mesh) permit(e *podEntry, by int) {
	if !e.permitted {
		return
	}
	node, id := e.alone.Node, e.alone.Identity()
	if m.permissions[node] == nil {
		m.permissions[node] = map[model.Identity]int{}
	}
	if m.permissions[node][id] += by; m.permissions[node][id] == 0 {
		delete(m.permissions[node], id)
	}
	if len(m.permissions[node]) == 0 {
		delete(m.permissions, node)
	}
}

// Permits says whether the node may have certificates for the identity:
// whether it runs, or is about to run, an enrolled pod that has it.
func (m *Mesh) Permits(node string, id model.Identity) bool {
	id = m.canonical(id)
	return m.permissions[node][id] > 0 && (!m.settings.Accounts || m.accounts[objectName{id.Namespace, id.ServiceAccount}])
}

// Poses reports whether an enrolled pod has the address and another identity: who
// asks from there for a certificate is not the node's proxy.
func (m *Mesh) Poses(from netip.Addr, id model.Identity) bool {
	e := m.podAt(from.Unmap())
	return e != nil && e.permitted && e.alone.Identity() != m.canonical(id)
}

// canonical is the identity in the mesh's own trust domain.
func (m *Mesh) canonical(id model.Identity) model.Identity {
	if slices.Contains(m.settings.TrustDomainAliases, id.TrustDomain) {
		id.TrustDomain = m.settings.TrustDomain
	}
	return id
}

// podAt is the pod that has the address: of several, as a pod that ends may
// be shown with an address that is another's already, the youngest.
func (m *Mesh) podAt(a addr) (found *podEntry) {
	for e := range m.podsAt[a] {
		if found == nil || younger(e, found) {
			found = e
		}
	}
	return found
}

func younger(x, y *podEntry) bool {
	if d := x.pod.CreationTimestamp.Compare(y.pod.CreationTimestamp.Time); d != 0 {
		return d > 0
	}
	return x.name.compare(y.name) > 0
}

// deriveJoin completes the workload, and tells if it is another than before.
func (m *Mesh) deriveJoin(e *podEntry) {
	now := m.joined(e)
	before := e.workload
	e.workload = now
	switch {
	case now == nil && before != nil:
		m.stale.update.RemovedAddresses = append(m.stale.update.RemovedAddresses, before.UID)
		m.counts.Workloads--
	case now != nil && !reflect.DeepEqual(before, now):
		m.stale.update.Workloads = append(m.stale.update.Workloads, now)
		m.statuses = nil // its ports may be others
		if before == nil {
			m.counts.Workloads++
		}
	case now != nil:
		e.workload = before // the same, so let go of the copy
	}
	if e.pod == nil {
		delete(m.pods, e.name)
		m.podsIn.remove(e.name.namespace, e)
	}
}

func (m *Mesh) joined(e *podEntry) *model.Workload {
	if e.alone == nil || len(e.alone.Addresses) == 0 {
		return nil
	}
	w := *e.alone
	for _, s := range m.slicesNaming(e) {
		if svc := m.services[s.service]; svc != nil && svc.told != nil {
			m.joinSlice(&w, e, s, svc.told.Key())
		}
	}
	for svc := range m.selecting[e.name.namespace] {
		if hasLabels(e.pod.Labels, svc.object.Spec.Selector) {
			join(&w, svc.told.Key(), podPorts(svc.object, e.pod))
		}
	}
	w.Policies = m.policies.attached(policyTarget(e.pod, &w))
	w.Labels = m.policies.result.Labels(e.pod.Labels)
	return &w
}

// slicesNaming are the slices with an endpoint that is the pod, by name.
func (m *Mesh) slicesNaming(e *podEntry) []*sliceEntry {
	out := slices.Collect(maps.Keys(m.slicesAbout[e.name]))
	if !e.alone.HostNetwork {
		for _, a := range e.alone.Addresses {
			if at := m.slicesAt[a]; len(at) > 0 && m.podAt(a) == e {
				out = slices.AppendSeq(out, maps.Keys(at))
			}
		}
	}
	slices.SortFunc(out, func(x, y *sliceEntry) int { return x.name.compare(y.name) })
	return slices.Compact(out)
}

func hasLabels(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}
