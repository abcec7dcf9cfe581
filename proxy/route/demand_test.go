package route

import (
	"slices"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// asking resolves a destination in a snapshot of what was asked for alone,
// asking until nothing is left to ask for. Before that nothing goes anywhere.
func asking(t *testing.T, whole *model.Snapshot, src Source, dst string) (r Route, asked []string) {
	t.Helper()
	s := model.NewSnapshot().Apply(model.Update{AddressesComplete: true, OnDemand: true})
	for {
		r = Resolve(s, src, addrPort(dst))
		var u model.Update
		for _, name := range Names(s, src, addrPort(dst)) {
			if s.Heard(name) {
				continue
			}
			u.Heard = append(u.Heard, name)
			whole.Named(name, func(key string) {
				if w := whole.Workload(key); w != nil {
					u.Workloads = append(u.Workloads, w)
				} else {
					u.Services = append(u.Services, whole.Service(key))
				}
			})
		}
		if u.Heard == nil {
			return r, asked
		}
		if got := describe(r); r.Refusal != NotHeard || len(got) > 0 {
			t.Fatalf("before %q is heard: %v, candidates %q", u.Heard, r.Refusal, got)
		}
		asked = append(asked, u.Heard...)
		s = s.Apply(u)
	}
}

// What is asked for decides as the whole mesh would.
func TestOnDemandIsAsTheWhole(t *testing.T) {
	named := model.Gateway{Service: waypointKey, Port: 15008}
	atVIP := model.Gateway{Address: addr(waypointVIP), Port: 15008}
	atPod := model.Gateway{Address: addr("198.18.3.1"), Port: 15008}
	sans := func(v *model.Service) { v.SANs = []string{farSAN} }
	const web, other = vip + ":80", "198.18.2.1:8080"
	gates := gate()
	gates.SANs = []string{"spiffe://cluster.local/ns/infra/sa/gate"}
	farGate := remote(func(w *model.Workload) { w.Services = map[string][]model.Port{waypointKey: nil} })
	for name, tt := range map[string]struct {
		services  []*model.Service
		workloads []*model.Workload
		dst       string
		asked     []string
	}{
		"nobody":                       {dst: other, asked: []string{"/198.18.2.1"}},
		"a pod":                        {workloads: []*model.Workload{pod("b", "198.18.2.1")}, dst: other, asked: []string{"/198.18.2.1"}},
		"a pod of an IPv4-mapped name": {workloads: []*model.Workload{pod("b", "198.18.2.1")}, dst: "[::ffff:198.18.2.1]:8080", asked: []string{"/198.18.2.1"}},
		"a service":                    {services: []*model.Service{service("app", vip)}, workloads: []*model.Workload{pod("b", "198.18.2.1", of())}, dst: web, asked: []string{"/" + vip}},
		"a service by a waypoint":      {services: []*model.Service{service("app", vip, by(named)), gate()}, workloads: []*model.Workload{gatePod("g", "198.18.3.1")}, dst: web, asked: []string{"/" + vip, waypointKey}},
		"by a waypoint at an address":  {services: []*model.Service{service("app", vip, by(atVIP)), gate()}, workloads: []*model.Workload{gatePod("g", "198.18.3.1")}, dst: web, asked: []string{"/" + vip, "/" + waypointVIP}},
		"a pod by a waypoint's pod":    {workloads: []*model.Workload{pod("b", "198.18.2.1", behind(atPod)), gatePod("g", "198.18.3.1")}, dst: other, asked: []string{"/198.18.2.1", "/198.18.3.1"}},
		"a waypoint that is not there": {services: []*model.Service{service("app", vip, by(named))}, dst: web, asked: []string{"/" + vip, waypointKey}},
		"one that cannot be read":      {services: []*model.Service{service("app", vip, by(model.Gateway{}))}, dst: web, asked: []string{"/" + vip}},
		"another network":              {services: []*model.Service{service("app", vip, sans)}, workloads: []*model.Workload{remote(), border()}, dst: web, asked: []string{"/" + vip, farNetwork + "/" + remoteAddr}},
		"a waypoint there":             {services: []*model.Service{service("app", vip, by(named)), gates}, workloads: []*model.Workload{farGate, border()}, dst: web, asked: []string{"/" + vip, waypointKey, farNetwork + "/" + remoteAddr}},
	} {
		t.Run(name, func(t *testing.T) {
			whole := mesh(tt.services, tt.workloads...)
			r, asked := asking(t, whole, client, tt.dst)
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("asked for %q, want %q", asked, tt.asked)
			}
			want := Resolve(whole, client, addrPort(tt.dst))
			if r.Refusal != want.Refusal || !slices.Equal(describe(r), describe(want)) {
				t.Errorf("refusal %v, candidates %q; of the whole mesh %v, %q", r.Refusal, describe(r), want.Refusal, describe(want))
			}
			if names := Names(whole, client, addrPort(tt.dst)); names != nil {
				t.Errorf("of the whole mesh %q is asked for", names)
			}
		})
	}
}
