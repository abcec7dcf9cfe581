package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	farNetwork = "far"
	farSAN     = "spiffe://cluster.local/ns/app/sa/far"
	borderKey  = "istio-system/border.istio-system.svc.cluster.local"
	remoteAddr = "203.0.113.7"
)

// remote stands for all endpoints of the service in another network, as istiod
// sends them: without an address.
func remote(edits ...func(*model.Workload)) *model.Workload {
	return pod("remote", "0.0.0.0", append([]func(*model.Workload){of(), func(w *model.Workload) {
		w.Addresses, w.Network = nil, farNetwork
		w.NetworkGateway = &model.Gateway{Network: farNetwork, Address: addr(remoteAddr), Port: 15008}
	}}, edits...)...)
}

// border is that network's gateway.
func border(edits ...func(*model.Workload)) *model.Workload {
	return pod("border", remoteAddr, append([]func(*model.Workload){func(w *model.Workload) {
		w.Network, w.Protocol, w.Namespace = farNetwork, model.ProtocolTCP, "istio-system"
	}}, edits...)...)
}

// describeCrossings is describeWays with what is behind gateways.
func describeCrossings(r Route) (out []string) {
	for c := range r.Candidates(1) {
		line := fmt.Sprintf("%s %s", c.Workload.Name, c.Dial())
		if b := c.Beyond(); b != nil {
			line += fmt.Sprintf(" to %s as %v", b.Authority, b.Identities)
		}
		out = append(out, line)
	}
	return out
}

func TestOtherNetworks(t *testing.T) {
	const through = "border 203.0.113.7:15008 to web.app.svc.cluster.local:80 as [spiffe://cluster.local/ns/app/sa/far]"
	sans := func(v *model.Service) { v.SANs = []string{farSAN, "no identity"} }
	gateway := func(g model.Gateway) func(*model.Workload) {
		return func(w *model.Workload) { w.NetworkGateway = &g }
	}
	borders := &model.Service{
		Name: "border", Namespace: "istio-system", Hostname: "border.istio-system.svc.cluster.local",
		Ports: []model.Port{{Service: 15008, Target: 15018}},
	}
	member := func(w *model.Workload) { w.Services = map[string][]model.Port{borderKey: nil} }
	hostname := func(w *model.Workload) { w.Hostname = "border.example" }
	byService := gateway(model.Gateway{Service: borderKey, Port: 15008})
	waypoint := by(model.Gateway{Service: waypointKey, Port: 15008})
	gates := gate()
	gates.SANs = []string{"spiffe://cluster.local/ns/infra/sa/gate"}
	farGate := remote(func(w *model.Workload) { w.Services = map[string][]model.Port{waypointKey: nil} })
	for name, tt := range map[string]struct {
		web       func(*model.Service)
		services  []*model.Service
		workloads []*model.Workload
		refusal   Refusal
		want      []string
		explains  string
	}{
		"by a gateway's address":         {web: sans, workloads: []*model.Workload{remote(), border()}, want: []string{through}, explains: "In another network"},
		"by a gateway's service":         {web: sans, services: []*model.Service{borders}, workloads: []*model.Workload{remote(byService), border(member)}, want: []string{strings.Replace(through, "15008", "15018", 1)}},
		"by a gateway's hostname":        {web: sans, workloads: []*model.Workload{remote(gateway(model.Gateway{Service: "istio-system/border.example", Port: 15008})), border(hostname)}, want: []string{through}},
		"gateway without an address":     {web: sans, workloads: []*model.Workload{remote(gateway(model.Gateway{Service: "istio-system/border.example", Port: 15008})), border(hostname, func(w *model.Workload) { w.Addresses = nil })}, refusal: NoEndpoints},
		"gateway that is not known":      {web: sans, workloads: []*model.Workload{remote()}, refusal: NoEndpoints, explains: "whose gateway has no usable endpoint"},
		"gateway that cannot be read":    {web: sans, workloads: []*model.Workload{remote(gateway(model.Gateway{})), border()}, refusal: NoEndpoints},
		"gateway behind itself":          {web: sans, services: []*model.Service{borders}, workloads: []*model.Workload{remote(byService), border(member, byService)}, want: []string{strings.Replace(through, "15008", "15018", 1)}},
		"without a gateway":              {web: sans, workloads: []*model.Workload{remote(func(w *model.Workload) { w.NetworkGateway = nil }), border()}, refusal: NoEndpoints, explains: "without a gateway"},
		"nobody is said to be there":     {workloads: []*model.Workload{remote(), border()}, refusal: NoEndpoints, explains: "does not say who is there"},
		"unhealthy there":                {web: sans, workloads: []*model.Workload{remote(func(w *model.Workload) { w.Unhealthy = true }), border()}, refusal: NoEndpoints},
		"here as well":                   {web: sans, workloads: []*model.Workload{remote(), border(), pod("b", "198.18.2.1", of())}, want: []string{"b 198.18.2.1:15008", through}},
		"waypoint there":                 {web: waypoint, services: []*model.Service{gates}, workloads: []*model.Workload{farGate, border()}, want: []string{"border 203.0.113.7:15008 to web.app.svc.cluster.local:80 as [spiffe://cluster.local/ns/infra/sa/gate]"}},
		"waypoint there, at its address": {web: by(model.Gateway{Network: farNetwork, Address: addr(remoteAddr), Port: 15008}), workloads: []*model.Workload{border()}, refusal: NoWaypoint},
	} {
		t.Run(name, func(t *testing.T) {
			web := service("app", vip)
			if tt.web != nil {
				tt.web(web)
			}
			r := Resolve(mesh(append(tt.services, web), tt.workloads...), client, addrPort(vip+":80"))
			if r.Refusal != tt.refusal {
				t.Errorf("refusal %q, want %q", r.Refusal, tt.refusal)
			}
			if got := slices.Sorted(slices.Values(describeCrossings(r))); !slices.Equal(got, tt.want) {
				t.Errorf("candidates %q, want %q", got, tt.want)
			}
			if said := strings.Join(r.Explain(), " "); !strings.Contains(said, tt.explains) {
				t.Errorf("explained as %q, without %q", said, tt.explains)
			}
		})
	}
}

// The gateway proves that it is itself: what the service allows is for those
// behind it.
func TestIdentityOfNetworkGateway(t *testing.T) {
	web := service("app", vip, func(v *model.Service) { v.SANs = []string{farSAN} })
	for c := range Resolve(mesh([]*model.Service{web}, remote(), border()), client, addrPort(vip+":80")).Candidates(1) {
		if ids := c.Identities(); len(ids) != 1 || ids[0].String() != "spiffe://cluster.local/ns/istio-system/sa/border" || !c.ByGateway() {
			t.Errorf("accepted are %v", ids)
		}
	}
}

// Where endpoints of the own network are preferred, the others come behind.
func TestNetworkPreference(t *testing.T) {
	web := service("app", vip, func(v *model.Service) {
		v.SANs, v.Balance, v.Prefer = []string{farSAN}, model.BalanceFailover, []model.Scope{model.ScopeNetwork}
	})
	for seed := range uint64(20) {
		var names []string
		for c := range Resolve(mesh([]*model.Service{web}, remote(), border(), pod("b", "198.18.2.1", of())), client, addrPort(vip+":80")).Candidates(seed) {
			names = append(names, c.Workload.Name)
		}
		if !slices.Equal(names, []string{"b", "border"}) {
			t.Fatalf("tried are %v", names)
		}
	}
}
