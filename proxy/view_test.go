package proxy

import (
	"net/netip"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/telemetry"
	"github.com/tacit-mesh/tacit/xds/model"
)

// A tunnel goes to the workload that it ends at, which on the way through a
// waypoint is not what the connection goes on to; what is not encrypted has none.
func TestWhereTunnelsGo(t *testing.T) {
	service, pod, waypoint := netip.MustParseAddrPort("198.19.0.1:80"), netip.MustParseAddrPort("198.18.2.1:8080"), netip.MustParseAddr("198.18.2.9")
	at := func(a netip.Addr) *model.Workload { return &model.Workload{Addresses: []netip.Addr{a}} }
	for name, test := range map[string]struct {
		direction telemetry.Direction
		security  telemetry.Security
		to        telemetry.End
		want      string
	}{
		"to a pod":           {telemetry.Outbound, telemetry.MTLS, telemetry.End{Addr: pod, Workload: at(pod.Addr())}, "198.18.2.1:15008"},
		"within the node":    {telemetry.Outbound, telemetry.Local, telemetry.End{Addr: pod, Workload: at(pod.Addr())}, "198.18.2.1:15008"},
		"through a waypoint": {telemetry.Outbound, telemetry.MTLS, telemetry.End{Addr: service, Workload: at(waypoint)}, "198.18.2.9:15008"},
		"in clear":           {telemetry.Outbound, telemetry.Plain, telemetry.End{Addr: pod, Workload: at(pod.Addr())}, "invalid AddrPort"},
		"received":           {telemetry.Inbound, telemetry.MTLS, telemetry.End{Addr: pod, Workload: at(pod.Addr())}, "invalid AddrPort"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Connection{}
			c.record.Direction, c.record.Security, c.record.Destination = test.direction, test.security, test.to
			if got := c.view().Tunnel.String(); got != test.want {
				t.Errorf("the tunnel goes to %s, want %s", got, test.want)
			}
		})
	}
}
