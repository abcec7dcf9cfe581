package policy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

var (
	client  = model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	noon    = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	anyRule = []model.Rule{{}}
)

// destination is the workload that the tests' requests go to.
func destination(policies ...string) *model.Workload {
	return &model.Workload{
		UID: "k//Pod/data/db", Namespace: "data", ServiceAccount: "db", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Policies: policies,
	}
}

func source() *model.Workload {
	return &model.Workload{
		UID: "k//Pod/shop/web", Namespace: "shop", ServiceAccount: "web", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Labels:    map[string]string{"app": "web", "tier": ""},
	}
}

// request is mTLS from shop/web at 10.0.0.1 to 10.0.0.9:5432 at noon.
func request() Request {
	return Request{
		Source: netip.MustParseAddr("10.0.0.1"), Identity: client, SourceWorkload: source(),
		Destination: netip.MustParseAddrPort("10.0.0.9:5432"), Workload: destination(), Time: noon,
	}
}

func plaintext(r *Request) { r.Identity = model.Identity{} }

func world(w *model.Workload, policies ...*model.Policy) *model.Snapshot {
	return model.NewSnapshot().Apply(model.Update{
		Workloads: []*model.Workload{w}, Policies: policies, AddressesComplete: true, PoliciesComplete: true,
	})
}

// named gives a policy of the destination's namespace.
func named(name string, action model.Action, rules ...model.Rule) *model.Policy {
	return &model.Policy{Name: name, Namespace: "data", Scope: model.ScopeNamespace, Action: action, Rules: rules}
}

func when(clauses ...model.Clause) model.Rule { return model.Rule{Clauses: clauses} }

func either(matches ...model.Match) model.Clause { return model.Clause{Matches: matches} }

func texts(values ...string) (out []model.StringMatch) {
	for _, v := range values {
		out = append(out, model.ParseStringMatch(v))
	}
	return out
}

func cidrs(values ...string) (out []netip.Prefix) {
	for _, v := range values {
		out = append(out, netip.MustParsePrefix(v))
	}
	return out
}

func label(key string, values ...string) []model.LabelMatch {
	return []model.LabelMatch{{Key: key, Values: texts(values...)}}
}

func window(first, last int) []model.TimeWindow {
	return []model.TimeWindow{{First: time.Duration(first) * time.Hour, Last: time.Duration(last) * time.Hour}}
}

func at(hour, minute, second int) func(*Request) {
	return func(r *Request) { r.Time = time.Date(2026, 11, 21, hour, minute, second, 0, time.UTC) }
}

func from(addr string) func(*Request) {
	return func(r *Request) { r.Source = netip.MustParseAddr(addr) }
}

func to(dst string) func(*Request) {
	return func(r *Request) { r.Destination = netip.MustParseAddrPort(dst) }
}

func stranger(r *Request) { r.SourceWorkload = nil }

func impostor(r *Request) { r.SourceWorkload.ServiceAccount = "other" }

// verdicts of a match: what an ALLOW policy and what a DENY policy with it does.
const (
	yes    = "matches"
	no     = "does not"
	closed = "matches for DENY alone"
)

func TestAttributes(t *testing.T) {
	tests := []struct {
		name    string
		match   model.Match
		request func(*Request)
		want    string
	}{
		{"nothing at all", model.Match{}, nil, no},
		{"unknown", model.Match{Unknown: "field 99"}, nil, closed},
		{"unknown beside what fails", model.Match{Unknown: "field 99", DestinationPorts: []uint16{80}}, nil, closed},

		{"principals: exact", model.Match{Principals: texts("cluster.local/ns/shop/sa/web")}, nil, yes},
		{"principals: second value", model.Match{Principals: texts("x", "cluster.local/ns/shop/sa/web")}, nil, yes},
		{"principals: with the scheme", model.Match{Principals: texts("spiffe://cluster.local/ns/shop/sa/web")}, nil, no},
		{"principals: other", model.Match{Principals: texts("cluster.local/ns/shop/sa/we")}, nil, no},
		{"principals: longer", model.Match{Principals: texts("cluster.local/ns/shop/sa/web2")}, nil, no},
		{"principals: prefix", model.Match{Principals: texts("cluster.local/ns/sh*")}, nil, yes},
		{"principals: other prefix", model.Match{Principals: texts("cluster.local/ns/da*")}, nil, no},
		{"principals: suffix", model.Match{Principals: texts("*/sa/web")}, nil, yes},
		{"principals: other suffix", model.Match{Principals: texts("*/sa/xweb")}, nil, no},
		{"principals: prefix that is all of it", model.Match{Principals: texts("cluster.local/ns/shop/sa/web*")}, nil, yes},
		{"principals: prefix that is longer", model.Match{Principals: texts("cluster.local/ns/shop/sa/web2*")}, nil, no},
		{"principals: suffix that is all of it", model.Match{Principals: texts("*cluster.local/ns/shop/sa/web")}, nil, yes},
		{"principals: suffix that is longer", model.Match{Principals: texts("*/cluster.local/ns/shop/sa/web")}, nil, no},
		{"principals: presence", model.Match{Principals: texts("*")}, nil, yes},
		{"principals: presence without identity", model.Match{Principals: texts("*")}, plaintext, no},
		{"principals: empty value without identity", model.Match{Principals: texts("")}, plaintext, no},
		{"notPrincipals: hit", model.Match{NotPrincipals: texts("cluster.local/ns/shop/sa/web")}, nil, no},
		{"notPrincipals: no hit", model.Match{NotPrincipals: texts("cluster.local/ns/shop/sa/db")}, nil, yes},
		{"notPrincipals: presence", model.Match{NotPrincipals: texts("*")}, nil, no},
		{"notPrincipals: presence without identity", model.Match{NotPrincipals: texts("*")}, plaintext, yes},

		{"namespaces: exact", model.Match{Namespaces: texts("shop")}, nil, yes},
		{"namespaces: other", model.Match{Namespaces: texts("data")}, nil, no},
		{"namespaces: prefix", model.Match{Namespaces: texts("sh*")}, nil, yes},
		{"namespaces: suffix", model.Match{Namespaces: texts("*op")}, nil, yes},
		{"namespaces: presence without identity", model.Match{Namespaces: texts("*")}, plaintext, no},
		{"namespaces: empty value without identity", model.Match{Namespaces: texts("")}, plaintext, no},
		{"notNamespaces: hit", model.Match{NotNamespaces: texts("shop")}, nil, no},
		{"notNamespaces: no hit", model.Match{NotNamespaces: texts("data")}, nil, yes},
		{"notNamespaces: without identity", model.Match{NotNamespaces: texts("shop")}, plaintext, yes},

		{"serviceAccounts: same", model.Match{ServiceAccounts: []model.ServiceAccount{{Namespace: "shop", Name: "web"}}}, nil, yes},
		{"serviceAccounts: other namespace", model.Match{ServiceAccounts: []model.ServiceAccount{{Namespace: "data", Name: "web"}}}, nil, no},
		{"serviceAccounts: without identity", model.Match{ServiceAccounts: []model.ServiceAccount{{}}}, plaintext, no},
		{"notServiceAccounts: hit", model.Match{NotServiceAccounts: []model.ServiceAccount{{Namespace: "shop", Name: "web"}}}, nil, no},
		{"notServiceAccounts: without identity", model.Match{NotServiceAccounts: []model.ServiceAccount{{Namespace: "shop", Name: "web"}}}, plaintext, yes},

		{"ipBlocks: inside", model.Match{SourceIPs: cidrs("10.0.0.0/24")}, nil, yes},
		{"ipBlocks: outside", model.Match{SourceIPs: cidrs("10.0.1.0/24", "10.0.0.2/32")}, nil, no},
		{"ipBlocks: mapped source", model.Match{SourceIPs: cidrs("10.0.0.0/24")}, from("::ffff:10.0.0.1"), yes},
		{"ipBlocks: mapped prefix", model.Match{SourceIPs: cidrs("::ffff:10.0.0.0/120")}, nil, yes},
		{"ipBlocks: IPv6", model.Match{SourceIPs: cidrs("fd00::/8")}, from("fd00::1"), yes},
		{"ipBlocks: IPv4 in all of IPv6", model.Match{SourceIPs: cidrs("::/0")}, nil, no},
		{"ipBlocks: zone", model.Match{SourceIPs: cidrs("fe80::/10")}, from("fe80::1%eth0"), yes},
		{"ipBlocks: source unknown", model.Match{SourceIPs: cidrs("0.0.0.0/0")}, func(r *Request) { r.Source = netip.Addr{} }, closed},
		{"notIpBlocks: inside", model.Match{NotSourceIPs: cidrs("10.0.0.0/24")}, nil, no},
		{"notIpBlocks: outside", model.Match{NotSourceIPs: cidrs("10.0.1.0/24")}, nil, yes},
		{"notIpBlocks: mapped source", model.Match{NotSourceIPs: cidrs("10.0.0.0/24")}, from("::ffff:10.0.0.1"), no},
		{"notIpBlocks: source unknown", model.Match{NotSourceIPs: cidrs("10.0.0.0/8")}, func(r *Request) { r.Source = netip.Addr{} }, closed},

		{"destination.ip: inside", model.Match{DestinationIPs: cidrs("10.0.0.9/32")}, nil, yes},
		{"destination.ip: outside", model.Match{DestinationIPs: cidrs("10.0.0.8/32")}, nil, no},
		{"destination.ip: mapped", model.Match{DestinationIPs: cidrs("10.0.0.9/32")}, to("[::ffff:10.0.0.9]:5432"), yes},
		{"destination.ip: not, hit", model.Match{NotDestinationIPs: cidrs("10.0.0.0/8")}, nil, no},
		{"destination.ip: not, no hit", model.Match{NotDestinationIPs: cidrs("11.0.0.0/8")}, nil, yes},

		{"ports: same", model.Match{DestinationPorts: []uint16{80, 5432}}, nil, yes},
		{"ports: other", model.Match{DestinationPorts: []uint16{80}}, nil, no},
		{"notPorts: hit", model.Match{NotDestinationPorts: []uint16{80, 5432}}, nil, no},
		{"notPorts: no hit", model.Match{NotDestinationPorts: []uint16{80}}, nil, yes},

		{"source.labels: same", model.Match{SourceLabels: label("app", "web")}, nil, yes},
		{"source.labels: prefix", model.Match{SourceLabels: label("app", "w*")}, nil, yes},
		{"source.labels: other", model.Match{SourceLabels: label("app", "db")}, nil, no},
		{"source.labels: two keys", model.Match{SourceLabels: append(label("app", "web"), label("tier", "x")...)}, nil, no},
		{"source.labels: pod lacks it", model.Match{SourceLabels: label("tier", "*")}, nil, no},
		{"source.labels: key not sent", model.Match{SourceLabels: label("zone", "a")}, nil, closed},
		{"source.labels: one fails, one not sent", model.Match{SourceLabels: append(label("zone", "a"), label("app", "db")...)}, nil, no},
		{"source.labels: no workload", model.Match{SourceLabels: label("app", "web")}, stranger, closed},
		{"source.labels: workload of another identity", model.Match{SourceLabels: label("app", "web")}, impostor, closed},
		{"source.labels: without identity", model.Match{SourceLabels: label("app", "web")}, plaintext, closed},
		{"source.labels: not, hit", model.Match{NotSourceLabels: label("app", "web")}, nil, no},
		{"source.labels: not, no hit", model.Match{NotSourceLabels: label("app", "db")}, nil, yes},
		{"source.labels: not, no workload", model.Match{NotSourceLabels: label("app", "db")}, stranger, closed},
		{"source.labels: not, key not sent", model.Match{NotSourceLabels: label("zone", "a")}, nil, closed},

		{"request.time: inside", model.Match{Times: window(8, 18)}, nil, yes},
		{"request.time: first second", model.Match{Times: window(8, 18)}, at(8, 0, 0), yes},
		{"request.time: second before", model.Match{Times: window(8, 18)}, at(7, 59, 59), no},
		{"request.time: last second", model.Match{Times: window(8, 18)}, at(17, 59, 59), yes},
		{"request.time: end", model.Match{Times: window(8, 18)}, at(18, 0, 0), no},
		{"request.time: across midnight, before", model.Match{Times: window(22, 6)}, at(23, 59, 59), yes},
		{"request.time: across midnight, after", model.Match{Times: window(22, 6)}, at(0, 0, 0), yes},
		{"request.time: across midnight, end", model.Match{Times: window(22, 6)}, at(6, 0, 0), no},
		{"request.time: another zone", model.Match{Times: window(12, 13)}, func(r *Request) { r.Time = noon.In(time.FixedZone("", 5*3600)) }, yes},
		{"request.time: not, hit", model.Match{NotTimes: window(8, 18)}, nil, no},
		{"request.time: not, no hit", model.Match{NotTimes: window(8, 18)}, at(18, 0, 0), yes},

		{"and: all", model.Match{Namespaces: texts("shop"), DestinationPorts: []uint16{5432}}, nil, yes},
		{"and: one fails", model.Match{Namespaces: texts("shop"), DestinationPorts: []uint16{80}}, nil, no},
		{"and: unknown and failing", model.Match{SourceLabels: label("app", "web"), DestinationPorts: []uint16{80}}, stranger, no},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request()
			if tt.request != nil {
				tt.request(&r)
			}
			rule := when(either(tt.match))
			allow := Evaluate(world(destination(), named("p", model.ActionAllow, rule)), &r)
			deny := Evaluate(world(destination(), named("p", model.ActionDeny, rule)), &r)
			wantAllow, wantDeny := tt.want == yes, tt.want == yes || tt.want == closed
			if allow.Allowed != wantAllow || !deny.Allowed != wantDeny {
				t.Errorf("%s: ALLOW: %v; DENY: %v", tt.want, allow, deny)
			}
		})
	}
}
