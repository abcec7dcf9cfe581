package istio

import (
	"net/netip"
	"slices"

	"github.com/tacit-mesh/tacit/xds/client"
	"github.com/tacit-mesh/tacit/xds/model"
)

// demand asks istiod for names. It says what they stand for, or that they are
// nothing, and when what they stand for changes.
func (m *mesh) demand() {
	m.t.Helper()
	p := m.followWith("a", func(c *client.Config) { c.OnDemand = true })
	const ownPod = "Kubernetes//Pod/mesh/client"
	s := p.await("the node's own", (*model.Snapshot).AddressesReady, (*model.Snapshot).PoliciesReady, has(ownPod))
	if !hasNot(serverPod, gonePod, serverService, goneService)(s) {
		m.t.Errorf("istiod has sent what was not asked for: %v, %v", s.Workloads(), s.Services())
	}
	ask := func(names ...string) *model.Snapshot {
		m.t.Helper()
		for _, name := range names {
			release, ok := p.client.Hold(name)
			if !ok {
				m.t.Fatalf("no room for %s", name)
			}
			m.t.Cleanup(release)
		}
		return p.await("an answer", func(s *model.Snapshot) bool {
			return !slices.ContainsFunc(names, func(name string) bool { return !s.Heard(name) })
		})
	}
	if s = ask("/10.96.7.1"); !has(serverService, serverPod)(s) || known(s, goneService) {
		m.t.Errorf("the virtual address stands for %v, %v", s.Workloads(), s.Services())
	}
	if s = ask("/198.18.2.10"); s.WorkloadAt("", netip.MustParseAddr("198.18.2.10")) == nil { // which is there already
		m.t.Error("the pod is not known")
	}
	if s = ask("/192.0.2.77", goneService); !has(goneService, gonePod)(s) {
		m.t.Errorf("the service's name stands for %v, %v", s.Workloads(), s.Services())
	}
	// What comes after nothing was there is found by asking again.
	m.createPod("mesh", "new", "new", "b", netip.MustParseAddr("192.0.2.77"))
	p.await("a pod at an address where nobody was", has("Kubernetes//Pod/mesh/new"))
	m.deletePod("mesh", "new")
	p.await("that it has gone", hasNot("Kubernetes//Pod/mesh/new"), func(s *model.Snapshot) bool { return s.Heard("/192.0.2.77") })
	if rejected := p.client.Status().Addresses.Nacks; rejected > 0 {
		m.t.Errorf("%d responses were rejected", rejected)
	}
}
