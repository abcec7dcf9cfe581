package proxy

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

const clientUID = "Kubernetes//Pod/mesh/client"

var (
	clientAddr = netip.MustParseAddr("198.18.1.10")
	serverAddr = netip.MustParseAddr("198.18.2.10")
)

// oneNetwork is a mesh of a client and a server, both of which are in a network
// with a name.
func oneNetwork(client string) *state.State {
	s := state.New()
	s.Apply(model.Update{AddressesComplete: true, PoliciesComplete: true, Workloads: []*model.Workload{
		{UID: client, Name: "client", Namespace: "mesh", Network: "n1", Addresses: []netip.Addr{clientAddr}, Protocol: model.ProtocolHBONE},
		{UID: "Kubernetes//Pod/mesh/server", Name: "server", Namespace: "mesh", Network: "n1", Addresses: []netip.Addr{serverAddr}, Protocol: model.ProtocolHBONE},
	}})
	return s
}

// ask resolves a connection of the client to the server.
func ask(t *testing.T, config Config) (*Proxy, route.Route, error) {
	t.Helper()
	config.Identities, config.MaxConnsPerPod = identity.NewStore(nil), 4
	p := New(config)
	p.draining = true // nothing is accepted here
	p.Add(sockets.Pod{UID: "uid", Namespace: "mesh", Name: "client", Addresses: []netip.Addr{clientAddr}}, sockets.Listeners{})
	c := p.newConnection(p.localPod("uid"), netip.AddrPortFrom(clientAddr, 40000), telemetry.Outbound)
	c.setDestination(netip.AddrPortFrom(serverAddr, 80))
	r, err := p.resolve(t.Context(), c)
	return p, r, err
}

// Whatever network the proxy was told, and if it was told none: what its pods
// send goes by the control plane's word.
func TestNetworkIsTheControlPlanesWord(t *testing.T) {
	for _, told := range []string{"", "elsewhere", "n1"} {
		p, r, err := ask(t, Config{Network: told, ClusterID: "Kubernetes", State: oneNetwork(clientUID)})
		if err != nil {
			t.Fatalf("--network=%q: %v", told, err)
		}
		for to := range r.Candidates(1) {
			if to.Means != route.HBONE || to.Workload == nil {
				t.Errorf("--network=%q: to %v by %v", told, to.Target, to.Means)
			}
		}
		if p.NodeNetwork() != "n1" {
			t.Errorf("--network=%q: the node's is %q", told, p.NodeNetwork())
		}
	}
}

// A pod that the control plane calls otherwise, or not yet, is in no network:
// its connections wait, and then fail.
func TestUnplacedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, err := ask(t, Config{Network: "n2", ClusterID: "other", State: oneNetwork(clientUID)})
		if err == nil || !strings.Contains(err.Error(), "--cluster-id") || !strings.Contains(err.Error(), "other//Pod/mesh/client") {
			t.Errorf("of another cluster: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := oneNetwork("Kubernetes//Pod/mesh/before")
		time.AfterFunc(decisionTimeout/2, func() {
			s.Apply(model.Update{RemovedAddresses: []string{"Kubernetes//Pod/mesh/before"}, Workloads: []*model.Workload{
				{UID: clientUID, Name: "client", Namespace: "mesh", Network: "n1", Addresses: []netip.Addr{clientAddr}},
			}})
		})
		if _, r, err := ask(t, Config{ClusterID: "Kubernetes", State: s}); err != nil || r.Refusal != route.NotRefused {
			t.Errorf("named late: %v, %v", r.Refusal, err)
		}
	})
}

// A pod of the same name that has gone is another one.
func TestPredecessorIsAnotherWorkload(t *testing.T) {
	s := oneNetwork(clientUID).Snapshot()
	p := &pod{Pod: sockets.Pod{Namespace: "mesh", Name: "client", Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.11")}}, workload: clientUID}
	if w := workloadOf(s, p); w != nil {
		t.Errorf("taken for %s at %v", w.UID, w.Addresses)
	}
}
