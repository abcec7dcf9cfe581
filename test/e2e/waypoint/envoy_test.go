package waypoint

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/xds/model"
)

func service(name, namespace, vip string, port, target uint16, edits ...func(*model.Service)) *model.Service {
	v := &model.Service{
		Name: name, Namespace: namespace, Hostname: name + "." + namespace + ".svc.cluster.local", Ports: []model.Port{{Service: port, Target: target}},
		Addresses: []model.NetworkAddress{{Network: network, Prefix: netip.PrefixFrom(addr(vip), 32)}},
	}
	for _, edit := range edits {
		edit(v)
	}
	return v
}

// only lets one identity in.
func only(id model.Identity) *model.Policy {
	return &model.Policy{Namespace: "mesh", Name: "only", Scope: model.ScopeNamespace, Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{
		Principals: []model.StringMatch{{Value: strings.TrimPrefix(id.String(), "spiffe://")}},
	}}}}}}}
}

const key = "mesh/server.mesh.svc.cluster.local"

func endpoint(w *model.Workload) { w.Services = map[string][]model.Port{key: nil} }

// A service's connections and a workload's go to the waypoint, which gets the
// address that was asked for, and from there to the workload, which sees the
// waypoint's identity; without the waypoint they go nowhere.
func TestEnvoy(t *testing.T) {
	m := start(t)
	gate := model.Gateway{Service: "outside/gate.outside.svc.cluster.local", Port: 15008}
	client, server := m.workload("mesh/client"), m.workload("mesh/server", endpoint)
	waypoint := m.workload(waypointPod, func(w *model.Workload) {
		w.Protocol, w.Services = model.ProtocolTCP, map[string][]model.Port{gate.Service: nil}
	})
	web := service("server", "mesh", "198.18.100.1", 80, 8080, func(v *model.Service) {
		v.Waypoints = []model.WeightedGateway{{Gateway: gate, Weight: 1}}
	})
	m.state.Apply(model.Update{
		Workloads:         []*model.Workload{client, server, waypoint},
		Services:          []*model.Service{web, service("gate", "outside", "198.18.100.9", 15008, 15008)},
		Policies:          []*model.Policy{only(waypoint.Identity())},
		AddressesComplete: true, PoliciesComplete: true,
	})
	m.startEnvoy(m.envoyConfig(waypointConfig, client, server), netip.AddrPortFrom(waypoint.Addresses[0], 15008).String())
	near, far := m.serve("a", "mesh/client"), m.serve("b", "mesh/server")
	m.Serve("mesh/server", ":8080", e2e.Echo)

	if saw, err := m.Call("mesh/client", authority); err != nil || saw != waypoint.Addresses[0].String() {
		t.Errorf("by way of the waypoint the server saw %s, want %v: %v", saw, waypoint.Addresses[0], err)
	}
	m.wantEnd("the client's proxy", near.Ended, waypoint.Identity(), authority)
	m.wantEnd("the server's proxy", far.Ended, server.Identity(), "198.18.2.10:8080")
	if from := far.Ended()[0].Source.Identity; from != waypoint.Identity().String() {
		t.Errorf("the server's proxy knows the client as %s", from)
	}

	// Straight to the pod the policy is in the way; with a waypoint of its own
	// it is not. Envoy knows that one authority.
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err == nil {
		t.Error("the server lets in others than the waypoint")
	}
	server = m.workload("mesh/server", func(w *model.Workload) { w.Waypoint = &gate })
	m.state.Apply(model.Update{Workloads: []*model.Workload{server}})
	before := len(near.Ended())
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err == nil {
		t.Error("the waypoint answers for what it does not know")
	}
	m.Eventually("the waypoint refuses", func() error {
		ended := near.Ended()
		if len(ended) == before || ended[len(ended)-1].Destination.Workload != waypointPod {
			return fmt.Errorf("%+v", ended)
		}
		return nil
	})

	m.state.Apply(model.Update{RemovedAddresses: []string{waypoint.UID}})
	if _, err := m.Call("mesh/client", authority); err == nil {
		t.Error("without its waypoint the service is reached")
	}
}

// wantEnd waits for a connection to have ended at that proxy as expected.
func (m *mesh) wantEnd(who string, ended func() []admin.Connection, destination model.Identity, to string) {
	m.t.Helper()
	m.Eventually(who+" tells of the connection", func() error {
		for _, c := range ended() {
			if c.Destination.Identity == destination.String() && c.Destination.Address.String() == to && c.Security == "mtls" {
				return nil
			}
		}
		return fmt.Errorf("%+v", ended())
	})
}
