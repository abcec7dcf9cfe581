package wire

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/workload"
	"github.com/tacit-mesh/tacit/xds/model"
)

func byName(namespace, hostname string, port uint32) *workload.GatewayAddress {
	return &workload.GatewayAddress{
		Destination:   &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{Namespace: namespace, Hostname: hostname}},
		HboneMtlsPort: port,
	}
}

func byAddress(address []byte, length *uint32) *workload.GatewayAddress {
	return &workload.GatewayAddress{
		Destination:   &workload.GatewayAddress_Address{Address: &workload.NetworkAddress{Network: "n", Address: address, Length: length}},
		HboneMtlsPort: 15008,
	}
}

// What must pass a waypoint that cannot be read keeps one, which leads nowhere:
// as the address of nobody it would be passed through.
func TestWaypointsThatAreNone(t *testing.T) {
	length := uint32(24)
	ofWorkload := func(g *workload.GatewayAddress) *anypb.Any {
		return packWorkload(&workload.Workload{Uid: "ns/x", Namespace: "ns", Waypoint: g})
	}
	ofService := func(g *workload.GatewayAddress) *anypb.Any {
		return packService(&workload.Service{Namespace: "ns", Hostname: "x", Waypoint: g})
	}
	weighted := func(g *workload.GatewayAddress) *anypb.Any {
		return packService(&workload.Service{Namespace: "ns", Hostname: "x", WeightedWaypoints: []*workload.WeightedWaypoint{
			{Destination: byName("ns", "good", 15008), Weight: 1}, {Destination: g, Weight: 1},
		}})
	}
	for name, tt := range map[string]struct {
		gateway *workload.GatewayAddress
		want    string
	}{
		"nothing in it":         {&workload.GatewayAddress{HboneMtlsPort: 15008}, "neither hostname nor address"},
		"no port":               {byName("ns", "h", 0), "hbone_mtls_port: 0"},
		"a port out of range":   {byName("ns", "h", 65536+15008), "hbone_mtls_port: 80544"},
		"no namespace":          {byName("", "h", 15008), "names no service"},
		"no hostname":           {byName("ns", "", 15008), "names no service"},
		"a namespace with more": {byName("a/b", "h", 15008), "names no service"},
		"an empty hostname":     {&workload.GatewayAddress{Destination: &workload.GatewayAddress_Hostname{}, HboneMtlsPort: 15008}, "names no service"},
		"an empty address":      {byAddress(nil, nil), "address of 0 bytes"},
		"an address of 5 bytes": {byAddress(make([]byte, 5), nil), "address of 5 bytes"},
		"a range of addresses":  {byAddress([]byte{10, 0, 0, 0}, &length), "not the address of one gateway"},
		"an oversized range":    {byAddress([]byte{10, 0, 0, 0}, new(uint32(33))), "prefix length 33"},
	} {
		for where, resource := range map[string]*anypb.Any{
			"waypoint: ": ofWorkload(tt.gateway), "waypoint:": ofService(tt.gateway), "weighted_waypoints[1].destination: ": weighted(tt.gateway),
		} {
			w, v, err := DecodeAddress("ns/x", resource)
			if got, want := gatewaysOf(w, v), standIns[where]; !slices.Equal(got, want) {
				t.Errorf("%s in %s: passes %v, want %v", name, where, got, want)
			}
			if err == nil || !strings.Contains(err.Error(), where) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `"ns/x"`) {
				t.Errorf("%s in %s: %v, want an error with %q", name, where, err, tt.want)
			}
		}
	}
	for name, list := range map[string][]*workload.WeightedWaypoint{
		"is missing":    {{Weight: 1}},
		"weights are 0": {{Destination: byName("ns", "a", 1)}, {Destination: byName("ns", "b", 1)}},
	} {
		w, v, err := DecodeAddress("ns/x", packService(&workload.Service{Namespace: "ns", Hostname: "x", WeightedWaypoints: list}))
		if got, want := gatewaysOf(w, v), []model.WeightedGateway{{Weight: 1}}; !slices.Equal(got, want) {
			t.Errorf("%s: passes %v, want %v", name, got, want)
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// standIns are what is read of a waypoint that cannot be, by where it stands.
var standIns = map[string][]model.WeightedGateway{
	"waypoint: ": {{Weight: 1}}, "waypoint:": {{Weight: 1}},
	"weighted_waypoints[1].destination: ": {{Gateway: model.Gateway{Service: "ns/good", Port: 15008}, Weight: 1}, {Weight: 1}},
}

// gatewaysOf are those of whichever of the two there is.
func gatewaysOf(w *model.Workload, v *model.Service) []model.WeightedGateway {
	switch {
	case v != nil:
		return v.Waypoints
	case w != nil && w.Waypoint != nil:
		return []model.WeightedGateway{{Gateway: *w.Waypoint, Weight: 1}}
	}
	return nil
}

// Anything else that cannot be read rejects the whole, waypoint or not.
func TestWaypointsOfWhatCannotBeRead(t *testing.T) {
	for name, resource := range map[string]*anypb.Any{
		"a workload": packWorkload(&workload.Workload{Uid: "ns/x", Namespace: "ns", Waypoint: byName("ns", "h", 0), Addresses: [][]byte{{1}}}),
		"a service":  packService(&workload.Service{Namespace: "ns", Hostname: "x", Waypoint: byName("ns", "h", 0), Ports: []*workload.Port{{ServicePort: 1 << 20}}}),
	} {
		if w, v, err := DecodeAddress("ns/x", resource); err == nil || w != nil || v != nil {
			t.Errorf("%s: %v, %v, %v", name, w, v, err)
		}
	}
}

// Where both fields are set the weighted waypoints are the newer word.
func TestWeightedWaypointsWin(t *testing.T) {
	_, v, err := DecodeAddress("ns/x", packService(&workload.Service{
		Namespace: "ns", Hostname: "x", Waypoint: byName("ns", "single", 15008),
		WeightedWaypoints: []*workload.WeightedWaypoint{{Destination: byName("ns", "a", 15008), Weight: 3}, {Destination: byName("ns", "b", 15008), Weight: 0}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Waypoints) != 2 || v.Waypoints[0].Service != "ns/a" || v.Waypoints[0].Weight != 3 || v.Waypoints[1].Weight != 0 {
		t.Errorf("%+v", v.Waypoints)
	}
}
