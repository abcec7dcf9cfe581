package wire

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/workload"
)

// badParts are what the fields of the messages inside of workloads and services
// may not be, by "MESSAGE.FIELD"; nothing of those of which any value will do.
func badParts() map[string][]*anypb.Any {
	long := strings.Repeat("a", maxText+1)
	places := func(all ...*workload.Locality) (out []*anypb.Any) {
		for _, l := range all {
			out = append(out, packWorkload(&workload.Workload{Uid: "ns/h", Namespace: "ns", Locality: l}))
		}
		return out
	}
	service := func(v *workload.Service) *anypb.Any {
		v.Namespace, v.Hostname = "ns", "h"
		return packService(v)
	}
	ports := func(all ...*workload.Port) (out []*anypb.Any) {
		for _, p := range all {
			out = append(out, service(&workload.Service{Ports: []*workload.Port{p}}),
				packWorkload(&workload.Workload{Uid: "ns/h", Namespace: "ns", Services: map[string]*workload.PortList{"ns/h": {Ports: []*workload.Port{p}}}}))
		}
		return out
	}
	addresses := func(all ...*workload.NetworkAddress) (out []*anypb.Any) {
		for _, a := range all {
			out = append(out, service(&workload.Service{Addresses: []*workload.NetworkAddress{a}}),
				service(&workload.Service{Waypoint: &workload.GatewayAddress{Destination: &workload.GatewayAddress_Address{Address: a}, HboneMtlsPort: 15008}}))
		}
		return out
	}
	gateways := func(all ...*workload.GatewayAddress) (out []*anypb.Any) {
		for _, g := range all {
			out = append(out, service(&workload.Service{Waypoint: g}), service(&workload.Service{WeightedWaypoints: []*workload.WeightedWaypoint{{Destination: g, Weight: 1}}}),
				packWorkload(&workload.Workload{Uid: "ns/h", Namespace: "ns", Waypoint: g}), packWorkload(&workload.Workload{Uid: "ns/h", Namespace: "ns", NetworkGateway: g}))
		}
		return out
	}
	tunnels := func(all ...*workload.ApplicationTunnel) (out []*anypb.Any) {
		for _, t := range all {
			out = append(out, packWorkload(&workload.Workload{Uid: "ns/h", Namespace: "ns", ApplicationTunnel: t}))
		}
		return out
	}
	balance := func(all ...*workload.LoadBalancing) (out []*anypb.Any) {
		for _, lb := range all {
			out = append(out, service(&workload.Service{LoadBalancing: lb}))
		}
		return out
	}
	four, high := []byte{10, 0, 0, 1}, new(uint32(33))
	return map[string][]*anypb.Any{
		"Locality.region":                  places(&workload.Locality{Region: long}),
		"Locality.zone":                    places(&workload.Locality{Zone: long}),
		"Locality.subzone":                 places(&workload.Locality{Subzone: long}),
		"ApplicationTunnel.protocol":       tunnels(&workload.ApplicationTunnel{Protocol: 99, Port: 1}, &workload.ApplicationTunnel{Protocol: -1, Port: 1}),
		"ApplicationTunnel.port":           tunnels(&workload.ApplicationTunnel{Protocol: 1, Port: 1 << 16}),
		"PortList.ports":                   ports(&workload.Port{}),
		"Port.service_port":                ports(&workload.Port{TargetPort: 80}, &workload.Port{ServicePort: 1 << 16}, &workload.Port{ServicePort: 1<<16 + 80}),
		"Port.target_port":                 ports(&workload.Port{ServicePort: 80, TargetPort: 1 << 16}, &workload.Port{ServicePort: 80, TargetPort: 1<<32 - 1}),
		"Port.app_protocol":                nil, // a later one is as none
		"NetworkAddress.network":           addresses(&workload.NetworkAddress{Network: long, Address: four}),
		"NetworkAddress.address":           addresses(&workload.NetworkAddress{}, &workload.NetworkAddress{Address: four[:3]}, &workload.NetworkAddress{Address: make([]byte, 1<<20)}),
		"NetworkAddress.length":            addresses(&workload.NetworkAddress{Address: four, Length: high}),
		"NamespacedHostname.namespace":     gateways(byName("", "h", 1), byName("a/b", "h", 1), byName(long, "h", 1)),
		"NamespacedHostname.hostname":      gateways(byName("ns", "", 1), byName("ns", long, 1)),
		"GatewayAddress.hostname":          gateways(&workload.GatewayAddress{Destination: &workload.GatewayAddress_Hostname{}, HboneMtlsPort: 1}),
		"GatewayAddress.address":           gateways(&workload.GatewayAddress{Destination: &workload.GatewayAddress_Address{}, HboneMtlsPort: 1}),
		"GatewayAddress.hbone_mtls_port":   gateways(byName("ns", "h", 0), byName("ns", "h", 1<<16), byName("ns", "h", 1<<16+1)),
		"WeightedWaypoint.destination":     {service(&workload.Service{WeightedWaypoints: []*workload.WeightedWaypoint{{Weight: 1}}})},
		"WeightedWaypoint.weight":          {service(&workload.Service{WeightedWaypoints: []*workload.WeightedWaypoint{{Destination: byName("ns", "h", 1)}}})},
		"LoadBalancing.routing_preference": balance(&workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{99}}),
		"LoadBalancing.mode":               balance(&workload.LoadBalancing{Mode: 99}),
		"LoadBalancing.health_policy":      balance(&workload.LoadBalancing{HealthPolicy: 99}),
		"Extension.name":                   nil, // one of somebody else
		"Extension.config": {
			service(&workload.Service{Extensions: []*workload.Extension{{Name: serviceExtension, Config: &anypb.Any{TypeUrl: "nothing"}}}}),
			packWorkload(&workload.Workload{Uid: "ns/h", Namespace: "ns", Extensions: []*workload.Extension{{Name: workloadExtension, Config: &anypb.Any{TypeUrl: "nothing"}}}}),
		},
	}
}

// TestEveryFieldWithinAddresses goes through all messages that workloads and
// services are made of: a field of a later version of the schema has to be
// thought of here.
func TestEveryFieldWithinAddresses(t *testing.T) {
	bad, seen := badParts(), map[protoreflect.FullName]bool{}
	var within func(d protoreflect.MessageDescriptor, top bool)
	within = func(d protoreflect.MessageDescriptor, top bool) {
		if seen[d.FullName()] || !strings.HasPrefix(string(d.FullName()), "istio.workload.") {
			return
		}
		seen[d.FullName()] = true
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			key := string(d.Name()) + "." + string(f.Name())
			if _, ok := bad[key]; !ok && !top && !d.IsMapEntry() {
				t.Errorf("%s: what may it not be?", key)
			}
			if f.Message() != nil {
				within(f.Message(), false)
			}
		}
	}
	within((&workload.Workload{}).ProtoReflect().Descriptor(), true)
	within((&workload.Service{}).ProtoReflect().Descriptor(), true)
	for key, resources := range bad {
		message, _, _ := strings.Cut(key, ".")
		if !seen[protoreflect.FullName("istio.workload."+message)] {
			t.Errorf("%s: there is no such message", key)
		}
		for i, r := range resources {
			if w, v, err := DecodeAddress("ns/h", r); err == nil || !strings.Contains(err.Error(), `"ns/h"`) {
				t.Errorf("%s, case %d: %v, %v, %v", key, i, w, v, err)
			}
		}
	}
}
