package client

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// mixedBag are resources that need, contradict or resemble each other, and
// those among them that are wrong.
func mixedBag() (all []*discovery.Resource, wrong map[string]bool) {
	at, named := netip.MustParseAddr("198.18.1.1"), map[string][]model.Port{"ns/h": {{Service: 80, Target: 8080}}}
	pod := func(uid string, addr netip.Addr, edit func(*model.Workload)) *discovery.Resource {
		w := &model.Workload{UID: uid, Name: uid, Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa", Addresses: []netip.Addr{addr}}
		if edit != nil {
			edit(w)
		}
		return res(uid, "1", must(wire.EncodeWorkload(w)))
	}
	service := func(v *model.Service) *discovery.Resource {
		v.Namespace = "ns"
		return res(v.Key(), "1", must(wire.EncodeService(v)))
	}
	packed := func(name string, w *workload.Workload) *discovery.Resource {
		return res(name, "1", must(anypb.New(&workload.Address{Type: &workload.Address_Workload{Workload: w}})))
	}
	later := must(anypb.New(&security.Authorization{Namespace: "ns", Name: "later", Scope: 7}))
	return []*discovery.Resource{
		pod("a", at, func(w *model.Workload) { w.Services = named }),
		pod("b", at.Next(), func(w *model.Workload) { w.Services, w.Policies = named, []string{"ns/p"} }),
		pod("c", at, nil), // has the address of a
		pod("d", at.Next().Next(), func(w *model.Workload) { w.Waypoint = &model.Gateway{Service: "ns/gate", Port: 15008} }),
		service(&model.Service{Hostname: "h", Ports: []model.Port{{Service: 80}}, Addresses: []model.NetworkAddress{{Prefix: netip.MustParsePrefix("198.19.0.1/32")}}}),
		service(&model.Service{Hostname: "gate", Ports: []model.Port{{Service: 15008}}}),
		service(&model.Service{Hostname: "portless", Addresses: []model.NetworkAddress{{Prefix: netip.MustParsePrefix("198.19.0.1/32")}}}),
		packed("nameless", &workload.Workload{Namespace: "ns"}),
		packed("far", &workload.Workload{Uid: "far", Namespace: "ns", Addresses: [][]byte{{1, 2, 3}}}),
		packed("zero", &workload.Workload{Uid: "zero", Namespace: "ns", Services: map[string]*workload.PortList{"ns/h": {Ports: []*workload.Port{{}}}}}),
		aPolicy("p", "1", 80),
		res("ns/later", "1", later),
		bad("ns/other", "1", aPolicy("q", "1", 80)),
	}, map[string]bool{"nameless": true, "far": true, "zero": true, "ns/other": true}
}

// In whatever order resources come, and in however many responses: what is wrong
// is rejected by its name, the rest makes the same mesh.
func TestAnyOrderMakesTheSameMesh(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, wrong := mixedBag()
		all = rapid.Permutation(all).Draw(t, "order")
		sink, rejected, last := newRecorder(), map[string]bool{}, ""
		c := New(Config{Sink: sink})
		for len(all) > 0 {
			n := rapid.IntRange(1, len(all)).Draw(t, "together")
			response := map[bool]*discovery.DeltaDiscoveryResponse{true: policies("p"), false: addresses("a")}
			for _, r := range all[:n] {
				of := response[r.GetResource().GetTypeUrl() == wire.AuthorizationType]
				of.Resources = append(of.Resources, r)
				if name := r.GetName(); name == "a" || name == "c" {
					last = name
				}
			}
			all = all[n:]
			for _, isPolicy := range []bool{rapid.Bool().Draw(t, "policies first"), false, true} {
				if of := response[isPolicy]; of != nil {
					delete(response, isPolicy)
					said := c.handle(of)[0].GetErrorDetail().GetMessage()
					for _, r := range of.GetResources() {
						if strings.Contains(said, fmt.Sprintf("%q: ", r.GetName())) {
							rejected[r.GetName()] = true
						}
					}
				}
			}
		}
		if !maps.Equal(rejected, wrong) {
			t.Fatalf("rejected %v, want %v", rejected, wrong)
		}
		checkBag(t, sink.snapshot, last)
	})
}

func checkBag(t *rapid.T, s *model.Snapshot, last string) {
	var services, endpoints []string
	for _, v := range s.Services() {
		services = append(services, v.Key())
	}
	for e := range s.Endpoints("ns/h") {
		endpoints = append(endpoints, e.Workload.UID)
	}
	slices.Sort(endpoints)
	got := fmt.Sprint(uids(s.Workloads()), services, endpoints, policyKeys(s.Policies()))
	if want := "[a b c d] [ns/gate ns/h ns/portless] [a b] [ns/later ns/other ns/p]"; got != want {
		t.Fatalf("the mesh is %s, want %s", got, want)
	}
	if w := s.WorkloadAt("", netip.MustParseAddr("198.18.1.1")); w.UID != last {
		t.Fatalf("the address that two have is %s's, want that of %s, which came last", w.UID, last)
	}
	if at := s.ServicesAt("", netip.MustParseAddr("198.19.0.1")); len(at) != 2 || at[0].Hostname != "h" {
		t.Fatalf("at the address that two services have: %v", at)
	}
	if w := s.Workload("d"); w.Waypoint == nil || s.Service(w.Waypoint.Service) == nil {
		t.Fatalf("%+v has lost its waypoint", w)
	}
	for key, denies := range map[string]bool{"ns/p": false, "ns/later": true, "ns/other": true} {
		if p, _ := s.Policy(key); (p.NotUnderstood() != "") != denies {
			t.Fatalf("policy %+v; denies for what is unknown: want %v", p, denies)
		}
	}
}

// A policy that is taken although something in it is unknown is told of.
func TestUnknownPartsOfPoliciesAreLogged(t *testing.T) {
	core, logged := observer.New(zap.WarnLevel)
	config := Config{Sink: newRecorder(), Log: zap.New(core)}
	c := New(config)
	match := &security.Match{DestinationPorts: []uint32{1 << 16}}
	a := &security.Authorization{Namespace: "ns", Name: "ports", Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{match}}}}}}
	answers := c.handle(policies("1", aPolicy("good", "1", 80), res("ns/ports", "1", must(anypb.New(a)))))
	if answers[0].GetErrorDetail() != nil {
		t.Error("rejected, so that it would not stand")
	}
	check := func(from string) {
		lines := logged.TakeAll()
		if len(lines) != 1 {
			t.Fatalf("from %s: logged %v", from, lines)
		}
		if said := fmt.Sprint(lines[0].ContextMap()["reason"]); !strings.Contains(said, `policy "ns/ports": rules[0].clauses[0].matches[0].destination_ports[0]: 65536`) || strings.Contains(said, "good") {
			t.Errorf("from %s: logged %q", from, said)
		}
	}
	check("the control plane")
	export, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	if err := New(config).Restore(export); err != nil {
		t.Fatal(err)
	}
	check("an earlier process")
}
