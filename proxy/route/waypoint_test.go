package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	vip         = "198.19.0.1"
	waypointVIP = "198.19.0.9"
	waypointKey = "infra/gate.infra.svc.cluster.local"
)

// gate is a waypoint's service, and its pods.
func gate() *model.Service {
	return &model.Service{
		Name: "gate", Namespace: "infra", Hostname: "gate.infra.svc.cluster.local", Private: true,
		Addresses: []model.NetworkAddress{{Prefix: netip.PrefixFrom(addr(waypointVIP), 32)}},
		Ports:     []model.Port{{Service: 15008, Target: 15008}, {Service: 15009, Target: 15010}},
		SANs:      []string{"spiffe://cluster.local/ns/app/sa/elsewhere"},
	}
}

func gatePod(name, ip string) *model.Workload {
	return pod(name, ip, func(w *model.Workload) {
		w.Namespace, w.Protocol = "infra", model.ProtocolTCP // speaks HBONE by itself
		w.Services = map[string][]model.Port{waypointKey: nil}
	})
}

func by(g model.Gateway) func(*model.Service) {
	return func(v *model.Service) { v.Waypoints = []model.WeightedGateway{{Gateway: g, Weight: 1}} }
}

func behind(g model.Gateway) func(*model.Workload) {
	return func(w *model.Workload) { w.Waypoint = &g }
}

// byName is a waypoint's pod that has a DNS name and no address.
func byName(leads ...string) *model.Workload {
	w := gatePod("g1", "198.18.3.1")
	w.Addresses, w.Hostname = nil, "gate.example"
	for _, a := range leads {
		w.Resolved = append(w.Resolved, addr(a))
	}
	return w
}

func TestWaypoints(t *testing.T) {
	named := model.Gateway{Service: waypointKey, Port: 15008}
	atVIP := model.Gateway{Address: addr(waypointVIP), Port: 15008}
	atPod := model.Gateway{Address: addr("198.18.3.1"), Port: 15008}
	gone := model.Gateway{Service: "infra/gone.infra.svc.cluster.local", Port: 15008}
	g1, backend := gatePod("g1", "198.18.3.1"), pod("b", "198.18.2.1", of())
	self := Source{Workload: g1, Address: addr("198.18.3.1"), Namespace: "infra"}
	through := "hbone g1 198.19.0.1:80 by 198.18.3.1:15008"
	for name, tt := range map[string]struct {
		source   Source
		web      func(*model.Service)
		backend  *model.Workload
		gates    []*model.Workload
		dst      string
		refusal  Refusal
		want     []string
		explains string
	}{
		"of a service, by hostname":        {source: client, web: by(named), gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{through}, explains: waypointKey},
		"of a service, by virtual address": {source: client, web: by(atVIP), gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{through}, explains: waypointVIP},
		"of a service, by a pod's address": {source: client, web: by(atPod), gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{through}, explains: "198.18.3.1:15008"},
		"of a service, by a DNS name":      {source: client, web: by(model.Gateway{Service: "infra/gate.example", Port: 15008}), gates: []*model.Workload{byName("203.0.113.1")}, dst: vip + ":80", want: []string{"hbone g1 198.19.0.1:80 by 203.0.113.1:15008"}},
		"by a DNS name that leads nowhere": {source: client, web: by(model.Gateway{Service: "infra/gate.example", Port: 15008}), gates: []*model.Workload{byName()}, dst: vip + ":80", refusal: NoWaypoint},
		"its port leads elsewhere":         {source: client, web: by(model.Gateway{Service: waypointKey, Port: 15009}), gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{"hbone g1 198.19.0.1:80 by 198.18.3.1:15010"}},
		"it decides which ports there are": {source: client, web: by(named), gates: []*model.Workload{g1}, dst: vip + ":7777", want: []string{"hbone g1 198.19.0.1:7777 by 198.18.3.1:15008"}},
		"all its pods in turn":             {source: client, web: by(named), gates: []*model.Workload{gatePod("g1", "198.18.3.1"), gatePod("g2", "198.18.3.2")}, dst: vip + ":80", want: []string{through, "hbone g2 198.19.0.1:80 by 198.18.3.2:15008"}},
		"without a pod":                    {source: client, web: by(named), dst: vip + ":80", refusal: NoWaypoint, explains: "refused"},
		"with an unhealthy pod":            {source: client, web: by(named), gates: []*model.Workload{pod("g1", "198.18.3.1", func(w *model.Workload) { w.Services, w.Unhealthy = map[string][]model.Port{waypointKey: nil}, true })}, dst: vip + ":80", refusal: NoWaypoint},
		"that is not known":                {source: client, web: by(gone), gates: []*model.Workload{g1}, dst: vip + ":80", refusal: NoWaypoint},
		"at an address of nobody":          {source: client, web: by(model.Gateway{Address: addr("203.0.113.1"), Port: 15008}), gates: []*model.Workload{g1}, dst: vip + ":80", refusal: NoWaypoint},
		"without such a port":              {source: client, web: by(model.Gateway{Service: waypointKey, Port: 1}), gates: []*model.Workload{g1}, dst: vip + ":80", refusal: NoWaypoint},
		"that could not be read":           {source: client, web: by(model.Gateway{}), gates: []*model.Workload{g1}, dst: vip + ":80", refusal: NoWaypoint, explains: "unreadable"},
		"beside one that could not be read": {source: client, web: func(v *model.Service) {
			by(named)(v)
			v.Waypoints = append(v.Waypoints, model.WeightedGateway{Weight: 1})
		}, gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{through}},
		"of a workload, not to be read":       {source: client, backend: pod("b", "198.18.2.1", of(), behind(model.Gateway{})), gates: []*model.Workload{g1}, dst: "198.18.2.1:80", refusal: NoWaypoint, explains: "unreadable"},
		"not to be read, asked by itself":     {source: self, web: by(model.Gateway{}), gates: []*model.Workload{g1}, dst: vip + ":80", refusal: NoWaypoint},
		"of a service, asked by itself":       {source: self, web: by(named), gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{"hbone b 198.18.2.1:8080"}},
		"of a service, not of its endpoint":   {source: client, web: by(named), gates: []*model.Workload{g1}, dst: "198.18.2.1:80", want: []string{"hbone b 198.18.2.1:80"}},
		"of a workload":                       {source: client, backend: pod("b", "198.18.2.1", of(), behind(named)), gates: []*model.Workload{g1}, dst: "198.18.2.1:80", want: []string{"hbone g1 198.18.2.1:80 by 198.18.3.1:15008"}, explains: "address of a pod"},
		"of a workload, not of its service":   {source: client, backend: pod("b", "198.18.2.1", of(), behind(named)), gates: []*model.Workload{g1}, dst: vip + ":80", want: []string{"hbone b 198.18.2.1:8080"}},
		"of a workload, asked by itself":      {source: self, backend: pod("b", "198.18.2.1", of(), behind(atPod)), gates: []*model.Workload{g1}, dst: "198.18.2.1:80", want: []string{"hbone b 198.18.2.1:80"}},
		"asked by itself, by virtual address": {source: self, backend: pod("b", "198.18.2.1", of(), behind(atVIP)), gates: []*model.Workload{g1}, dst: "198.18.2.1:80", want: []string{"hbone b 198.18.2.1:80"}},
		"of a workload, without a pod":        {source: client, backend: pod("b", "198.18.2.1", of(), behind(named)), dst: "198.18.2.1:80", refusal: NoWaypoint},
	} {
		t.Run(name, func(t *testing.T) {
			web := service("app", vip)
			if tt.web != nil {
				tt.web(web)
			}
			if tt.backend == nil {
				tt.backend = backend
			}
			r := Resolve(mesh([]*model.Service{web, gate()}, append(tt.gates, tt.backend)...), tt.source, addrPort(tt.dst))
			if r.Refusal != tt.refusal {
				t.Errorf("refusal %q, want %q", r.Refusal, tt.refusal)
			}
			got := slices.Sorted(slices.Values(describeWays(r))) // endpoints of one service come in any order
			if !slices.Equal(got, tt.want) {
				t.Errorf("candidates %q, want %q", got, tt.want)
			}
			if said := strings.Join(r.Explain(), " "); !strings.Contains(said, tt.explains) {
				t.Errorf("explained as %q, without %q", said, tt.explains)
			}
		})
	}
}

// describeWays is describe with the gateways on the way.
func describeWays(r Route) (out []string) {
	for c := range r.Candidates(1) {
		line := fmt.Sprintf("%s %s %s", c.Means, c.Workload.Name, c.Target)
		if c.ByGateway() {
			line += " by " + c.Dial().String()
		}
		out = append(out, line)
	}
	return out
}

// A waypoint must be itself: what its service allows besides is for others.
func TestIdentityOfWaypoint(t *testing.T) {
	web := service("app", vip, by(model.Gateway{Service: waypointKey, Port: 15008}), func(v *model.Service) { v.SANs = gate().SANs })
	r := Resolve(mesh([]*model.Service{web, gate()}, gatePod("g1", "198.18.3.1")), client, addrPort(vip+":80"))
	for c := range r.Candidates(1) {
		if ids := c.Identities(); len(ids) != 1 || ids[0].String() != "spiffe://cluster.local/ns/infra/sa/g1" {
			t.Errorf("accepted are %v", ids)
		}
	}
}

// Each connection tries waypoints in an order by weight, and the ones without
// weight not at all.
func TestWeightedWaypoints(t *testing.T) {
	var gates []*model.Workload
	web := service("app", vip)
	for i, weight := range []uint32{90, 10, 0} {
		ip := fmt.Sprintf("198.18.3.%d", i)
		gates = append(gates, gatePod(fmt.Sprint("g", i), ip))
		web.Waypoints = append(web.Waypoints, model.WeightedGateway{Gateway: model.Gateway{Address: addr(ip), Port: 15008}, Weight: weight})
	}
	r := Resolve(mesh([]*model.Service{web}, gates...), client, addrPort(vip+":80"))
	const rounds = 10000
	first := map[string]int{}
	for seed := range uint64(rounds) {
		var names []string
		for c := range r.Candidates(seed) {
			names = append(names, c.Workload.Name)
		}
		if len(names) != 2 || slices.Contains(names, "g2") {
			t.Fatalf("tried are %v", names)
		}
		first[names[0]]++
	}
	if n := first["g1"]; n < rounds*8/100 || n > rounds*12/100 {
		t.Errorf("of %d connections %d went to the one with weight 10 of 100", rounds, n)
	}
}

// A source that is not known yet is in the node's network.
func TestNetworkOfTheNode(t *testing.T) {
	far := pod("a", "198.18.2.1", func(w *model.Workload) { w.Network = "far" })
	for network, want := range map[string]Means{"far": HBONE, "": Passthrough} {
		source := client
		source.Network = network
		for c := range Resolve(mesh(nil, far), source, addrPort("198.18.2.1:80")).Candidates(1) {
			if c.Means != want {
				t.Errorf("from network %q: %v, want %v", network, c.Means, want)
			}
		}
	}
}
