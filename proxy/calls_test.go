package proxy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// What is in the mesh is called as the pod that a decision is for, and all else
// as nobody; names are those of services, or are left to the DNS.
func TestWhoIsCalledAsWhom(t *testing.T) {
	address := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, n}) }
	meshed := &model.Workload{UID: "k//Pod/mesh/gate", Name: "gate", Namespace: "mesh", Protocol: model.ProtocolHBONE, Addresses: []netip.Addr{address(1)}}
	far := &model.Workload{UID: "k//Pod/mesh/far", Name: "far", Namespace: "mesh", Network: "far", Protocol: model.ProtocolHBONE, Addresses: []netip.Addr{address(1)}}
	plain := &model.Workload{UID: "k//Pod/mesh/plain", Name: "plain", Namespace: "mesh", Addresses: []netip.Addr{address(2)}}
	service := func(name string, w *model.Workload) *model.Service {
		s := &model.Service{Name: name, Namespace: "mesh", Hostname: name + ".mesh.svc.cluster.local", Ports: []model.Port{{Service: 80, Target: 9000}}}
		w.Services = map[string][]model.Port{s.Key(): nil}
		return s
	}
	s := model.NewSnapshot().Apply(model.Update{
		Services: []*model.Service{service("gate", meshed), service("plain", plain), service("far", far)}, Workloads: []*model.Workload{meshed, plain, far},
	})
	for _, test := range []struct {
		host   string
		port   uint16
		at     string
		inMesh bool
	}{
		{"10.0.0.1", 9000, "10.0.0.1:9000", true},
		{"::ffff:10.0.0.1", 9000, "10.0.0.1:9000", true},
		{"10.0.0.2", 9000, "10.0.0.2:9000", false},
		{"192.0.2.1", 9000, "192.0.2.1:9000", false},
		{"gate.mesh.svc.cluster.local", 80, "10.0.0.1:9000", true},
		{"plain.mesh.svc.cluster.local", 80, "10.0.0.2:9000", false},
		{"gate.mesh.svc.cluster.local", 81, "invalid AddrPort", false},
		{"far.mesh.svc.cluster.local", 80, "invalid AddrPort", false},
		{"gate.example.com", 80, "invalid AddrPort", false},
	} {
		at, inMesh := callee(s, "", test.host, test.port)
		for _, n := range []byte{1, 2} { // of a call to itself it is known
			own := netip.AddrPortFrom(address(n), 9000)
			if got := serves(s, "", own, test.host, test.port); got != (own == at) {
				t.Errorf("%s:%d: arrives at %v: %v", test.host, test.port, own, got)
			}
		}
		if at.String() != test.at || inMesh != test.inMesh {
			t.Errorf("%s:%d: %v, in the mesh %v", test.host, test.port, at, inMesh)
		}
	}
}

// A pod that is gone calls nobody, also not in clear.
func TestCallsOfPodsThatAreGone(t *testing.T) {
	s := startOneServer(t, echoing(t))
	s.Remove("uid", true)
	if c, err := s.dialOut(t.Context(), "uid", "tcp", s.address); err == nil {
		_ = c.Close()
		t.Error("a pod that is gone has called")
	}
}

// What is in the mesh is not called in clear, as nobody.
func TestNoCallsInClearIntoTheMesh(t *testing.T) {
	s := startOneServer(t, echoing(t))
	app := netip.MustParseAddrPort(s.address)
	call := func() error {
		c, err := s.dialOut(t.Context(), "", "tcp", s.address)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	s.State.Apply(model.Update{Workloads: []*model.Workload{{
		UID: "k//Pod/mesh/gate", Name: "gate", Namespace: "mesh", Protocol: model.ProtocolHBONE, Addresses: []netip.Addr{app.Addr()},
	}}})
	if call() == nil {
		t.Error("a pod of the mesh was called in clear")
	}
	s.State.Apply(model.Update{
		Services: []*model.Service{{Name: "gate", Namespace: "mesh", Hostname: "localhost", Ports: []model.Port{{Service: app.Port(), Target: app.Port()}}}},
		Workloads: []*model.Workload{{
			UID: "k//Pod/mesh/gate", Name: "gate", Namespace: "mesh", Protocol: model.ProtocolHBONE, Unhealthy: true,
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Services: map[string][]model.Port{"mesh/localhost": nil},
		}},
	})
	if c, err := s.dialOut(t.Context(), "", "tcp", fmt.Sprintf("localhost:%d", app.Port())); err == nil {
		_ = c.Close()
		t.Error("whoever has the name of a service without healthy pods was called in clear")
	}
}
