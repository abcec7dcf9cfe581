package client

import (
	"net/netip"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// A waypoint that cannot be read leads nowhere, and what is behind it is known
// all the same: as the address of nobody it would be reached past the waypoint.
func TestBadWaypointRefuses(t *testing.T) {
	srv := newServer(t)
	c := srv.startClient(t, nil)
	st := next(t, "a stream", srv.streams)
	st.subscriptions(t)
	none := model.Gateway{Service: "ns/gate"} // without a port
	workload := func(version string, g *model.Gateway) *discovery.Resource {
		return res("w", version, must(wire.EncodeWorkload(&model.Workload{UID: "w", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.1")}, Waypoint: g})))
	}
	service := res("ns/h", "1", must(wire.EncodeService(&model.Service{Namespace: "ns", Hostname: "h", Waypoints: []model.WeightedGateway{{Gateway: none, Weight: 1}}})))
	st.mustAck(t, addresses("1", workload("1", nil)))
	c.sink.one(t)

	for _, nonce := range []string{"2", "3"} { // sent again, it is rejected again
		message := st.mustNack(t, addresses(nonce, workload("2", &none), service))
		if !strings.HasPrefix(message, "2 of 2 ") || !strings.Contains(message, "hbone_mtls_port") {
			t.Errorf("rejection %q", message)
		}
	}
	if w := c.sink.snapshot.Workload("w"); w == nil || w.Waypoint == nil || *w.Waypoint != (model.Gateway{}) {
		t.Errorf("the workload is %+v, want one behind a waypoint of nobody", w)
	}
	if v := c.sink.snapshot.Service("ns/h"); v == nil || len(v.Waypoints) != 1 || v.Waypoints[0].Gateway != (model.Gateway{}) {
		t.Errorf("the service is %+v, want one behind a waypoint of nobody", v)
	}
	if a := c.Status().Addresses; a.Resources != 2 || a.Nacks != 2 {
		t.Errorf("status %+v", a)
	}
	st.mustAck(t, addresses("4", workload("3", &model.Gateway{Service: "ns/gate", Port: 15008})))
	if w := c.sink.snapshot.Workload("w"); w.Waypoint == nil || w.Waypoint.Service != "ns/gate" {
		t.Errorf("the workload is %+v, want one behind its waypoint", w)
	}
}
