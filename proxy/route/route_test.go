package route

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// pod makes a captured, healthy workload; edits change it.
func pod(name string, ip string, edits ...func(*model.Workload)) *model.Workload {
	w := &model.Workload{
		UID: "Kubernetes//Pod/app/" + name, Name: name, Namespace: "app", ServiceAccount: name,
		TrustDomain: model.DefaultTrustDomain, Addresses: []netip.Addr{addr(ip)},
		Protocol: model.ProtocolHBONE, Capacity: 1, Node: "node-a",
	}
	for _, edit := range edits {
		edit(w)
	}
	return w
}

const webKey = "app/web.app.svc.cluster.local"

// of makes the workload an endpoint of the service web.
func of(ports ...model.Port) func(*model.Workload) {
	return func(w *model.Workload) { w.Services = map[string][]model.Port{webKey: ports} }
}

func service(namespace, vip string, edits ...func(*model.Service)) *model.Service {
	v := &model.Service{
		Name: "web", Namespace: namespace, Hostname: "web." + namespace + ".svc.cluster.local",
		Ports: []model.Port{{Service: 80, Target: 8080}, {Service: 81}},
	}
	for _, ip := range []string{vip} {
		a := addr(ip)
		v.Addresses = append(v.Addresses, model.NetworkAddress{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	for _, edit := range edits {
		edit(v)
	}
	return v
}

func mesh(services []*model.Service, workloads ...*model.Workload) *model.Snapshot {
	return model.NewSnapshot().Apply(model.Update{Services: services, Workloads: workloads, AddressesComplete: true})
}

var client = Source{Address: addr("198.18.1.1"), Namespace: "app", Node: "node-a"}

// describe lists a route's candidates in order.
func describe(r Route) []string {
	var out []string
	for c := range r.Candidates(1) {
		name := "-"
		if c.Workload != nil {
			name = c.Workload.Name
		}
		out = append(out, fmt.Sprintf("%s %s %s", c.Means, name, c.Target))
	}
	return out
}

func TestResolve(t *testing.T) {
	web := service("app", vip)
	tests := []struct {
		name      string
		services  []*model.Service
		workloads []*model.Workload
		dst       string
		refusal   Refusal
		service   string
		want      []string
	}{
		{name: "nothing known", dst: "203.0.113.1:443", want: []string{"passthrough - 203.0.113.1:443"}},
		{name: "workload", workloads: []*model.Workload{pod("a", "198.18.2.1")}, dst: "198.18.2.1:5432",
			want: []string{"hbone a 198.18.2.1:5432"}},
		{name: "workload by mapped address", workloads: []*model.Workload{pod("a", "198.18.2.1")}, dst: "[::ffff:198.18.2.1]:5432",
			want: []string{"hbone a 198.18.2.1:5432"}},
		{name: "workload outside the mesh", dst: "198.18.2.1:5432",
			workloads: []*model.Workload{pod("a", "198.18.2.1", func(w *model.Workload) { w.Protocol = model.ProtocolTCP })},
			want:      []string{"unmeshed a 198.18.2.1:5432"}},
		{name: "skipped port", dst: "198.18.2.1:5432",
			workloads: []*model.Workload{pod("a", "198.18.2.1", func(w *model.Workload) { w.SkipInbound = model.PortSet{{First: 5400, Last: 5500}} })},
			want:      []string{"skipped a 198.18.2.1:5432"}},
		{name: "port beside the skipped one", dst: "198.18.2.1:5501",
			workloads: []*model.Workload{pod("a", "198.18.2.1", func(w *model.Workload) { w.SkipInbound = model.PortSet{{First: 5400, Last: 5500}} })},
			want:      []string{"hbone a 198.18.2.1:5501"}},
		{name: "host network is not found by address", dst: "198.18.2.1:80",
			workloads: []*model.Workload{pod("a", "198.18.2.1", func(w *model.Workload) { w.HostNetwork = true })},
			want:      []string{"passthrough - 198.18.2.1:80"}},
		{name: "unhealthy workload asked for by address", dst: "198.18.2.1:80",
			workloads: []*model.Workload{pod("a", "198.18.2.1", func(w *model.Workload) { w.Unhealthy = true })},
			want:      []string{"hbone a 198.18.2.1:80"}},
		{name: "own port on loopback", dst: "127.0.0.1:15001", refusal: Loop},
		{name: "own port on IPv6 loopback", dst: "[::1]:15006", refusal: Loop},
		{name: "own port on own address", dst: "198.18.1.1:15008", refusal: Loop},
		{name: "own port elsewhere", dst: "198.18.1.2:15008", want: []string{"passthrough - 198.18.1.2:15008"}},
		{name: "other port on loopback", dst: "127.0.0.1:8080", want: []string{"passthrough - 127.0.0.1:8080"}},

		{name: "service", services: []*model.Service{web}, workloads: []*model.Workload{pod("a", "198.18.2.1", of())},
			dst: vip + ":80", service: webKey, want: []string{"hbone a 198.18.2.1:8080"}},
		{name: "endpoint's own port wins", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(model.Port{Service: 80, Target: 9090}))},
			want:      []string{"hbone a 198.18.2.1:9090"}},
		{name: "endpoint's own port without a number does not", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(model.Port{Service: 80}))},
			want:      []string{"hbone a 198.18.2.1:8080"}},
		{name: "named port at one endpoint only", services: []*model.Service{web}, dst: vip + ":81", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(model.Port{Service: 81, Target: 9091})), pod("b", "198.18.2.2", of())},
			want:      []string{"hbone a 198.18.2.1:9091"}},
		{name: "named port at no endpoint", services: []*model.Service{web}, dst: vip + ":81", service: webKey,
			workloads: []*model.Workload{pod("b", "198.18.2.2", of(model.Port{Service: 81}))}, refusal: NoEndpoints},
		{name: "skipped target port", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.SkipInbound = model.PortSet{{First: 8080, Last: 8080}} })},
			want:      []string{"skipped a 198.18.2.1:8080"}},
		{name: "skipping the service's port is not skipping the target", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.SkipInbound = model.PortSet{{First: 80, Last: 80}} })},
			want:      []string{"hbone a 198.18.2.1:8080"}},
		{name: "host network endpoint", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.HostNetwork, w.Protocol = true, model.ProtocolTCP })},
			want:      []string{"unmeshed a 198.18.2.1:8080"}},
		{name: "unknown port", services: []*model.Service{web}, workloads: []*model.Workload{pod("a", "198.18.2.1", of())},
			dst: vip + ":82", service: webKey, refusal: UnknownPort},
		{name: "no endpoints", services: []*model.Service{web}, dst: vip + ":80", service: webKey, refusal: NoEndpoints},
		{name: "unhealthy endpoints are left out", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.Unhealthy = true })}, refusal: NoEndpoints},
		{name: "unhealthy endpoints where the service wants them", dst: vip + ":80", service: webKey,
			services:  []*model.Service{service("app", vip, func(v *model.Service) { v.Unhealthy = true })},
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.Unhealthy = true })},
			want:      []string{"hbone a 198.18.2.1:8080"}},
		{name: "endpoint in another network", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.Network = "far" })}, refusal: NoEndpoints},
		{name: "endpoint without address", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.Addresses = nil })}, refusal: NoEndpoints},
		{name: "terminating and empty ones last", services: []*model.Service{web}, dst: vip + ":80", service: webKey,
			workloads: []*model.Workload{
				pod("empty", "198.18.2.1", of(), func(w *model.Workload) { w.Capacity = 0 }),
				pod("ending", "198.18.2.2", of(), func(w *model.Workload) { w.Terminating, w.Capacity = true, 1000 }),
				pod("fine", "198.18.2.3", of()),
			},
			want: []string{"hbone fine 198.18.2.3:8080", "hbone ending 198.18.2.2:8080", "hbone empty 198.18.2.1:8080"}},
		{name: "passthrough service", dst: vip + ":82", service: webKey,
			services:  []*model.Service{service("app", vip, func(v *model.Service) { v.Balance = model.BalancePassthrough })},
			workloads: []*model.Workload{pod("a", "198.18.2.1", of())},
			want:      []string{"passthrough - 198.19.0.1:82"}},
		{name: "workload before service", services: []*model.Service{web}, dst: vip + ":80",
			workloads: []*model.Workload{pod("a", vip), pod("b", "198.18.2.2", of())},
			want:      []string{"hbone a 198.19.0.1:80"}},
		{name: "range of addresses", dst: "198.19.7.7:80", service: webKey,
			services: []*model.Service{service("app", vip, func(v *model.Service) {
				v.Addresses = []model.NetworkAddress{{Prefix: netip.MustParsePrefix("198.19.7.0/24")}}
			})},
			workloads: []*model.Workload{pod("a", "198.18.2.1", of())},
			want:      []string{"hbone a 198.18.2.1:8080"}},
		{name: "private to another namespace", dst: vip + ":80",
			services: []*model.Service{service("other", vip, func(v *model.Service) { v.Private = true })},
			want:     []string{"passthrough - 198.19.0.1:80"}},
		{name: "private to the client's namespace", dst: vip + ":80", service: webKey,
			services:  []*model.Service{service("app", vip, func(v *model.Service) { v.Private = true })},
			workloads: []*model.Workload{pod("a", "198.18.2.1", of())},
			want:      []string{"hbone a 198.18.2.1:8080"}},
		{name: "shared address, client's namespace first", dst: vip + ":80", service: webKey, refusal: NoEndpoints,
			services: []*model.Service{web, service("aaa", vip, func(v *model.Service) { v.Canonical = true })}},
		{name: "shared address, canonical next", dst: vip + ":80", service: "bbb/web.bbb.svc.cluster.local", refusal: NoEndpoints,
			services: []*model.Service{service("aaa", vip), service("bbb", vip, func(v *model.Service) { v.Canonical = true })}},
		{name: "shared address, private canonical does not count", dst: vip + ":80", service: "aaa/web.aaa.svc.cluster.local", refusal: NoEndpoints,
			services: []*model.Service{service("aaa", vip), service("bbb", vip, func(v *model.Service) { v.Canonical, v.Private = true, true })}},
		{name: "shared address, else the first", dst: vip + ":80", service: "aaa/web.aaa.svc.cluster.local", refusal: NoEndpoints,
			services: []*model.Service{service("bbb", vip), service("aaa", vip)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Resolve(mesh(tt.services, tt.workloads...), client, addrPort(tt.dst))
			key := ""
			if r.Service != nil {
				key = r.Service.Key()
			}
			if r.Refusal != tt.refusal || key != tt.service {
				t.Errorf("refusal %q, service %q; want %q, %q", r.Refusal, key, tt.refusal, tt.service)
			}
			if got := describe(r); !slices.Equal(got, tt.want) {
				t.Errorf("candidates %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	r := Resolve(model.NewSnapshot(), client, addrPort("203.0.113.1:443"))
	if r.Refusal != NotReady || describe(r) != nil {
		t.Errorf("before the first full list: refusal %q, candidates %q", r.Refusal, describe(r))
	}
	if got := describe(Route{}); got != nil {
		t.Errorf("the zero Route has candidates %q", got)
	}
}

func TestAddressFamily(t *testing.T) {
	both := func(w *model.Workload) { w.Addresses = []netip.Addr{addr("198.18.2.1"), addr("fd00:7ac1::1")} }
	s := mesh([]*model.Service{service("app", "198.19.0.1"), service("app", "198.19.0.1", func(v *model.Service) {
		v.Addresses = append(v.Addresses, model.NetworkAddress{Prefix: netip.MustParsePrefix("fd00:7ac1:1::1/128")})
	})}, pod("dual", "198.18.2.1", of(), both), pod("four", "198.18.2.2", of()))
	for dst, want := range map[string][]string{
		"198.19.0.1:80":       {"hbone dual 198.18.2.1:8080", "hbone four 198.18.2.2:8080"},
		"[fd00:7ac1:1::1]:80": {"hbone dual [fd00:7ac1::1]:8080", "hbone four 198.18.2.2:8080"},
	} {
		got := describe(Resolve(s, client, addrPort(dst)))
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", dst, got, want)
		}
	}
}

func TestLocality(t *testing.T) {
	at := func(region, zone, node string) func(*model.Workload) {
		return func(w *model.Workload) { w.Locality, w.Node = model.Locality{Region: region, Zone: zone}, node }
	}
	src := client
	src.Workload = pod("client", "198.18.1.1", at("r1", "z1", "node-a"))
	endpoints := []*model.Workload{
		pod("far", "198.18.2.1", of(), at("r2", "z1", "node-d"), func(w *model.Workload) { w.Capacity = 1000 }),
		pod("region", "198.18.2.2", of(), at("r1", "z2", "node-c")),
		pod("node", "198.18.2.4", of(), at("r1", "z1", "node-a")),
		pod("zone", "198.18.2.3", of(), at("r1", "z1", "node-b"), func(w *model.Workload) { w.Capacity = 1000 }),
		pod("ending", "198.18.2.5", of(), at("r1", "z1", "node-a"), func(w *model.Workload) { w.Terminating = true }),
	}
	scopes := []model.Scope{model.ScopeRegion, model.ScopeZone, model.ScopeNode}
	tests := []struct {
		name   string
		mode   model.BalanceMode
		prefer []model.Scope
		source Source
		want   []string
	}{
		{"failover", model.BalanceFailover, scopes, src, []string{"node", "zone", "region", "far", "ending"}},
		{"strict", model.BalanceStrict, scopes, src, []string{"node", "ending"}},
		{"strict zone", model.BalanceStrict, scopes[:2], src, []string{"node|zone", "zone|node", "ending"}},
		{"strict node, client not known yet", model.BalanceStrict, scopes[2:], client, []string{"node", "ending"}},
		{"a later scope does not make up for an earlier one", model.BalanceFailover,
			[]model.Scope{model.ScopeZone, model.ScopeRegion}, src, []string{"node|zone", "zone|node", "far", "region", "ending"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mesh([]*model.Service{service("app", "198.19.0.1", func(v *model.Service) { v.Balance, v.Prefer = tt.mode, tt.prefer })}, endpoints...)
			var got []string
			for c := range Resolve(s, tt.source, addrPort("198.19.0.1:80")).Candidates(7) {
				got = append(got, c.Workload.Name)
			}
			fits := func(got, want string) bool { return slices.Contains(splitBar(want), got) }
			if !slices.EqualFunc(got, tt.want, fits) {
				t.Errorf("order %q, want %q", got, tt.want)
			}
		})
	}
}

func splitBar(s string) []string {
	for i := range s {
		if s[i] == '|' {
			return []string{s[:i], s[i+1:]}
		}
	}
	return []string{s}
}

// The first choice, and the first choice once that one has failed, follow
// the capacities.
func TestCapacity(t *testing.T) {
	const rounds = 20000
	capacities := map[string]uint32{"a": 1, "b": 2, "c": 5, "d": 0}
	var endpoints []*model.Workload
	for i, name := range []string{"a", "b", "c", "d"} {
		endpoints = append(endpoints, pod(name, fmt.Sprintf("198.18.2.%d", i+1), of(), func(w *model.Workload) { w.Capacity = capacities[name] }))
	}
	r := Resolve(mesh([]*model.Service{service("app", "198.19.0.1")}, endpoints...), client, addrPort("198.19.0.1:80"))
	first, afterC := map[string]float64{}, map[string]float64{}
	for seed := range uint64(rounds) {
		var names []string
		for c := range r.Candidates(seed) {
			names = append(names, c.Workload.Name)
		}
		first[names[0]]++
		if names[0] == "c" {
			afterC[names[1]]++
		}
	}
	check := func(what string, counts map[string]float64, want map[string]float64) {
		var total float64
		for _, n := range counts {
			total += n
		}
		for name, share := range want {
			// Five standard deviations of a binomial: the seeds are fixed,
			// so this either always passes or never.
			if got, sd := counts[name]/total, math.Sqrt(share*(1-share)/total); math.Abs(got-share) > 5*sd {
				t.Errorf("%s: %s gets %.4f, want %.4f", what, name, got, share)
			}
		}
	}
	check("first", first, map[string]float64{"a": 1. / 8, "b": 2. / 8, "c": 5. / 8, "d": 0})
	check("after c", afterC, map[string]float64{"a": 1. / 3, "b": 2. / 3, "d": 0})
}

func TestAffinity(t *testing.T) {
	sticky := []*model.Service{service("app", "198.19.0.1", func(v *model.Service) { v.Affinity = 3 * time.Hour })}
	var endpoints []*model.Workload
	for i := range 10 {
		endpoints = append(endpoints, pod(fmt.Sprintf("e%d", i), fmt.Sprintf("198.18.2.%d", i+1), of()))
	}
	choose := func(s *model.Snapshot, i int) string {
		src := client
		src.Address = netip.AddrFrom4([4]byte{198, 18, 3, byte(i)})
		for c := range Resolve(s, src, addrPort("198.19.0.1:80")).Candidates(uint64(time.Now().UnixNano())) {
			return c.Workload.Name
		}
		return ""
	}
	full, fewer := mesh(sticky, endpoints...), mesh(sticky, endpoints[1:]...)
	used := map[string]int{}
	for i := range 250 {
		name := choose(full, i)
		used[name]++
		if again := choose(full, i); again != name {
			t.Errorf("client %d went to %s, then to %s", i, name, again)
		}
		if left := choose(fewer, i); name != "e0" && left != name {
			t.Errorf("client %d moved from %s to %s when another endpoint went", i, name, left)
		}
	}
	for _, e := range endpoints {
		if n := used[e.Name]; n < 10 || n > 50 {
			t.Errorf("%s serves %d of 250 clients, want about 25", e.Name, n)
		}
	}
}

func TestCandidate(t *testing.T) {
	s := mesh([]*model.Service{service("app", "198.19.0.1", func(v *model.Service) {
		v.SANs = []string{"spiffe://cluster.local/ns/app/sa/a", "spiffe://other/ns/x/sa/y", "not an identity"}
	})}, pod("a", "198.18.2.1", of()))
	for dst, want := range map[string][]string{
		"198.19.0.1:80":   {"spiffe://cluster.local/ns/app/sa/a", "spiffe://other/ns/x/sa/y"},
		"198.18.2.1:8080": {"spiffe://cluster.local/ns/app/sa/a"},
		"203.0.113.1:443": nil,
	} {
		for c := range Resolve(s, client, addrPort(dst)).Candidates(1) {
			var got []string
			for _, id := range c.Identities() {
				got = append(got, id.String())
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: identities %q, want %q", dst, got, want)
			}
			if dial := c.Dial().String(); c.Means == HBONE && dial != "198.18.2.1:15008" || c.Means == Passthrough && dial != dst {
				t.Errorf("%s: dials %s by %s", dst, dial, c.Means)
			}
		}
	}
}

// Whatever the endpoints are, every usable one comes exactly once, and tiers
// never go back.
func TestCandidatesCoverAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 40).Draw(t, "endpoints")
		usable := map[string]bool{}
		var endpoints []*model.Workload
		for i := range n {
			w := pod(fmt.Sprintf("e%d", i), fmt.Sprintf("198.18.2.%d", i+1), of())
			w.Unhealthy = rapid.Bool().Draw(t, "unhealthy")
			w.Terminating = rapid.Bool().Draw(t, "terminating")
			w.Capacity = rapid.SampledFrom([]uint32{0, 1, 1, 7, math.MaxUint32}).Draw(t, "capacity")
			w.Node = rapid.SampledFrom([]string{"node-a", "node-b"}).Draw(t, "node")
			endpoints = append(endpoints, w)
			usable[w.Name] = !w.Unhealthy
		}
		v := service("app", "198.19.0.1")
		v.Balance, v.Prefer = model.BalanceFailover, []model.Scope{model.ScopeNode}
		v.Affinity = time.Duration(rapid.IntRange(0, 1).Draw(t, "affinity"))
		r := Resolve(mesh([]*model.Service{v}, endpoints...), client, addrPort("198.19.0.1:80"))
		last := -1
		for c := range r.Candidates(rapid.Uint64().Draw(t, "seed")) {
			if !usable[c.Workload.Name] {
				t.Fatalf("%s comes twice or is not usable", c.Workload.Name)
			}
			delete(usable, c.Workload.Name)
			_, tier, _ := r.consider(model.Endpoint{Workload: c.Workload})
			if tier < last {
				t.Fatalf("%s of tier %d comes after tier %d", c.Workload.Name, tier, last)
			}
			last = tier
		}
		for name, left := range usable {
			if left {
				t.Fatalf("%s never comes", name)
			}
		}
	})
}

// What a connection allocates does not grow with the service.
func TestAllocations(t *testing.T) {
	var endpoints []*model.Workload
	for i := range 1000 {
		endpoints = append(endpoints, pod(fmt.Sprintf("e%d", i), fmt.Sprintf("198.18.%d.%d", 16+i/250, 1+i%250), of()))
	}
	s, dst := mesh([]*model.Service{service("app", "198.19.0.1")}, endpoints...), addrPort("198.19.0.1:80")
	allocations := testing.AllocsPerRun(100, func() {
		for range Resolve(s, client, dst).Candidates(1) {
			break
		}
	})
	if allocations > 5 {
		t.Errorf("%.0f allocations", allocations)
	}
}

func BenchmarkResolve(b *testing.B) {
	for _, n := range []int{1, 10, 100, 2000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			var endpoints []*model.Workload
			for i := range n {
				endpoints = append(endpoints, pod(fmt.Sprintf("web-5d8c9f7b6-%05d", i), fmt.Sprintf("198.18.%d.%d", 16+i/250, 1+i%250), of()))
			}
			s := mesh([]*model.Service{service("app", "198.19.0.1")}, endpoints...)
			dst, seed := addrPort("198.19.0.1:80"), uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				seed++
				for c := range Resolve(s, client, dst).Candidates(seed) {
					_ = c
					break
				}
			}
		})
	}
	b.Run("workload", func(b *testing.B) {
		s := mesh(nil, pod("a", "198.18.2.1"))
		b.ReportAllocs()
		for b.Loop() {
			for c := range Resolve(s, client, addrPort("198.18.2.1:80")).Candidates(1) {
				_ = c
				break
			}
		}
	})
}
