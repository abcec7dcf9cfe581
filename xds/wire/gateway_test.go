package wire

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/workload"
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

// What must pass a waypoint that cannot be read is refused, and not sent
// straight.
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
			_, _, err := DecodeAddress("ns/x", resource)
			if err == nil || !strings.Contains(err.Error(), where) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `"ns/x"`) {
				t.Errorf("%s in %s: %v, want an error with %q", name, where, err, tt.want)
			}
		}
	}
	for name, list := range map[string][]*workload.WeightedWaypoint{
		"is missing":    {{Weight: 1}},
		"weights are 0": {{Destination: byName("ns", "a", 1)}, {Destination: byName("ns", "b", 1)}},
	} {
		if _, _, err := DecodeAddress("ns/x", packService(&workload.Service{Namespace: "ns", Hostname: "x", WeightedWaypoints: list})); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
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
