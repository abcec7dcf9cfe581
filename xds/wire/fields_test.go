package wire

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tacit-mesh/tacit/xds/api/workload"
)

// any value of these fields will do: what they lead to is checked where it is
// used, or they only decorate telemetry.
var indifferent = map[string][]string{
	"Workload": {
		"native_tunnel", "authorization_policies", // an unknown policy denies
		"workload_type", // any later kind is a pod
	},
	"Service": {
		"canonical", "ip_families", "ingress_use_waypoint",
		"subject_alt_names", // one that is no identity is nobody's
	},
	"Authorization": {"dry_run", "rules"}, // without rules it matches nothing; those have a test of their own
	"Rule":          {"clauses"},          // without any it matches everything
	"Clause":        {"matches"},          // without any it matches everything
}

// What each field may not be. Cases of one field stand together: missing,
// empty, oversized, out of range, contradictory, as far as there is such.
func badWorkloads() map[string][]func(*workload.Workload) {
	long := strings.Repeat("a", maxText+1)
	services := func(key string, ports ...*workload.Port) func(*workload.Workload) {
		return func(w *workload.Workload) { w.Services = map[string]*workload.PortList{key: {Ports: ports}} }
	}
	gateways := func(set func(*workload.Workload, *workload.GatewayAddress)) (bad []func(*workload.Workload)) {
		for _, g := range []*workload.GatewayAddress{
			{}, byName("ns", "", 15008), byName("", "h", 15008), byName("ns", "h", 0), byName("ns", "h", 1<<16), byAddress(make([]byte, 3), nil),
		} {
			bad = append(bad, func(w *workload.Workload) { set(w, g) })
		}
		return bad
	}
	tunnel := func(protocol int32, port uint32) func(*workload.Workload) {
		return func(w *workload.Workload) {
			w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.ApplicationTunnel_Protocol(protocol), Port: port}
		}
	}
	one := func(change func(*workload.Workload)) []func(*workload.Workload) {
		return []func(*workload.Workload){change}
	}
	return map[string][]func(*workload.Workload){
		"uid": {
			func(w *workload.Workload) { w.Uid = "" },
			func(w *workload.Workload) { w.Uid = "another" },
			func(w *workload.Workload) { w.Uid = long },
		},
		"name": one(func(w *workload.Workload) { w.Name = long }),
		"namespace": {
			func(w *workload.Workload) { w.Namespace = "" },
			func(w *workload.Workload) { w.Namespace = "a/b" },
			func(w *workload.Workload) { w.Namespace = long },
		},
		"addresses": {
			func(w *workload.Workload) { w.Addresses = [][]byte{{}} },
			func(w *workload.Workload) { w.Addresses = [][]byte{make([]byte, 17)} },
			func(w *workload.Workload) { w.Addresses = [][]byte{make([]byte, 1<<20)} },
		},
		"hostname": one(func(w *workload.Workload) { w.Hostname = long }),
		"network":  one(func(w *workload.Workload) { w.Network = long }),
		"tunnel_protocol": {
			func(w *workload.Workload) { w.TunnelProtocol = workload.TunnelProtocol_LEGACY_ISTIO_MTLS },
			func(w *workload.Workload) { w.TunnelProtocol = 99 },
			func(w *workload.Workload) { w.TunnelProtocol = -1 },
		},
		"trust_domain": {
			func(w *workload.Workload) { w.TrustDomain = "a/b" },
			func(w *workload.Workload) { w.TrustDomain = long },
		},
		"service_account": {
			func(w *workload.Workload) { w.ServiceAccount = "a/../b" },
			func(w *workload.Workload) { w.ServiceAccount = long },
		},
		"waypoint":           gateways(func(w *workload.Workload, g *workload.GatewayAddress) { w.Waypoint = g }),
		"network_gateway":    gateways(func(w *workload.Workload, g *workload.GatewayAddress) { w.NetworkGateway = g }),
		"application_tunnel": {tunnel(99, 1), tunnel(-1, 1), tunnel(1, 1<<16), tunnel(1, 1<<31)},
		"node":               one(func(w *workload.Workload) { w.Node = long }),
		"canonical_name":     one(func(w *workload.Workload) { w.CanonicalName = long }),
		"canonical_revision": one(func(w *workload.Workload) { w.CanonicalRevision = long }),
		"workload_name":      one(func(w *workload.Workload) { w.WorkloadName = long }),
		"services": {
			services(""), services("hostname"), services("/hostname"), services("ns/"), services("ns/" + long),
			services("ns/h", &workload.Port{}),
			services("ns/h", &workload.Port{ServicePort: 1 << 16}),
			services("ns/h", &workload.Port{ServicePort: 80, TargetPort: 1 << 31}),
		},
		"status": {
			func(w *workload.Workload) { w.Status = 2 },
			func(w *workload.Workload) { w.Status = -1 },
		},
		"cluster_id":   one(func(w *workload.Workload) { w.ClusterId = long }),
		"locality":     one(func(w *workload.Workload) { w.Locality = &workload.Locality{Subzone: long} }),
		"network_mode": one(func(w *workload.Workload) { w.NetworkMode = 2 }),
		"extensions":   one(func(w *workload.Workload) { w.Extensions = []*workload.Extension{{Name: workloadExtension}} }),
		"capacity":     nil, // any number is one
	}
}

func badServices() map[string][]func(*workload.Service) {
	long := strings.Repeat("a", maxText+1)
	balance := func(lb *workload.LoadBalancing) func(*workload.Service) {
		return func(v *workload.Service) { v.LoadBalancing = lb }
	}
	weighted := func(list ...*workload.WeightedWaypoint) func(*workload.Service) {
		return func(v *workload.Service) { v.WeightedWaypoints = list }
	}
	one := func(change func(*workload.Service)) []func(*workload.Service) {
		return []func(*workload.Service){change}
	}
	return map[string][]func(*workload.Service){
		"name":      one(func(v *workload.Service) { v.Name = long }),
		"namespace": {func(v *workload.Service) { v.Namespace = "" }, func(v *workload.Service) { v.Namespace = long }},
		"hostname":  {func(v *workload.Service) { v.Hostname = "" }, func(v *workload.Service) { v.Hostname = "other" }},
		"addresses": {
			func(v *workload.Service) { v.Addresses = []*workload.NetworkAddress{{}} },
			func(v *workload.Service) { v.Addresses = []*workload.NetworkAddress{{Address: make([]byte, 5)}} },
			func(v *workload.Service) {
				v.Addresses = []*workload.NetworkAddress{{Address: make([]byte, 4), Length: proto.Uint32(33)}}
			},
			func(v *workload.Service) {
				v.Addresses = []*workload.NetworkAddress{{Address: make([]byte, 16), Length: proto.Uint32(1 << 31)}}
			},
		},
		"ports": {
			func(v *workload.Service) { v.Ports = []*workload.Port{{}} },
			func(v *workload.Service) { v.Ports = []*workload.Port{{ServicePort: 80, TargetPort: 1<<16 + 80}} },
			func(v *workload.Service) { v.Ports = []*workload.Port{{ServicePort: 1<<16 + 80}} },
		},
		"waypoint": {
			func(v *workload.Service) { v.Waypoint = &workload.GatewayAddress{HboneMtlsPort: 15008} },
			func(v *workload.Service) { v.Waypoint = byName("ns", "h", 0) },
		},
		"load_balancing": {
			balance(&workload.LoadBalancing{Mode: 4}),
			balance(&workload.LoadBalancing{HealthPolicy: -1}),
			balance(&workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{0}}),
			balance(&workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{99}}),
		},
		"extensions":         one(func(v *workload.Service) { v.Extensions = []*workload.Extension{{Name: serviceExtension}} }),
		"weighted_waypoints": {weighted(&workload.WeightedWaypoint{Weight: 1}), weighted(&workload.WeightedWaypoint{Destination: byName("ns", "h", 15008)})},
		"visibility":         one(func(v *workload.Service) { v.Visibility = 2 }),
	}
}

// TestEveryFieldOfAddresses goes through all fields that there are: one of a
// later version of the schema has to be thought of here. Each case is an error
// that names the resource, and no panic.
func TestEveryFieldOfAddresses(t *testing.T) {
	const name = "ns/h"
	workloads, services := badWorkloads(), badServices()
	eachField(t, &workload.Workload{}, func(field string) bool {
		for i, change := range workloads[field] {
			w := &workload.Workload{Uid: name, Namespace: "ns"}
			change(w)
			if got, _, err := DecodeAddress(name, packWorkload(w)); err == nil || !strings.Contains(err.Error(), `"`+name+`"`) {
				t.Errorf("workload, %s, case %d: %v, %v", field, i, got, err)
			}
		}
		_, ok := workloads[field]
		return ok
	})
	eachField(t, &workload.Service{}, func(field string) bool {
		for i, change := range services[field] {
			v := &workload.Service{Namespace: "ns", Hostname: "h"}
			change(v)
			if _, got, err := DecodeAddress(name, packService(v)); err == nil || !strings.Contains(err.Error(), `"`+name+`"`) {
				t.Errorf("service, %s, case %d: %v, %v", field, i, got, err)
			}
		}
		_, ok := services[field]
		return ok
	})
}

func eachField(t *testing.T, m proto.Message, check func(string) (known bool)) {
	t.Helper()
	d := m.ProtoReflect().Descriptor()
	for i := range d.Fields().Len() {
		field := string(d.Fields().Get(i).Name())
		if known := check(field); known == slices.Contains(indifferent[string(d.Name())], field) {
			t.Errorf("%s.%s: what may it not be?", d.Name(), field)
		}
	}
}

// What any value will do for is taken as it comes.
func TestIndifferentFields(t *testing.T) {
	w := &workload.Workload{
		Uid: "u", Namespace: "ns", NativeTunnel: true, AuthorizationPolicies: []string{"", "no key", "a/b/c"}, WorkloadType: 99,
		Capacity: wrapperspb.UInt32(1<<32 - 1),
	}
	if got, _, err := DecodeAddress("u", packWorkload(w)); err != nil || got.Capacity != 1<<32-1 {
		t.Errorf("%+v, %v", got, err)
	}
	v := &workload.Service{Namespace: "ns", Hostname: "h", IpFamilies: 99, IngressUseWaypoint: true, Canonical: true, SubjectAltNames: []string{"", "spiffe://", "x"}}
	if _, _, err := DecodeAddress("ns/h", packService(v)); err != nil {
		t.Error(err)
	}
}
