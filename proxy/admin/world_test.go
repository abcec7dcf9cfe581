package admin

import (
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// The mesh that these tests ask about: a shop whose backend takes orders from
// the frontend alone, a database that skips its port on both sides, and a
// namespace outside the mesh.
func shop() *model.Snapshot {
	web := "shop/backend.shop.svc.cluster.local"
	return model.NewSnapshot().Apply(model.Update{
		AddressesComplete: true,
		PoliciesComplete:  true,
		Workloads: []*model.Workload{
			pod("shop", "frontend", "198.18.1.1", func(w *model.Workload) {
				w.SkipOutbound, w.SkipOutboundCIDRs = model.PortSet{{First: 5432, Last: 5432}}, []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
				w.SkippedBy = &model.SkippedBy{Outbound: "namespace annotation config.linkerd.io/skip-outbound-ports", OutboundCIDRs: "pod annotation tacit.mesh/skip-outbound-cidrs"}
			}),
			pod("shop", "backend-1", "198.18.2.1", func(w *model.Workload) {
				w.Services = map[string][]model.Port{web: nil}
				w.ServiceAccount, w.Policies = "backend", []string{"shop/orders", "shop/strict", "shop/gone"}
			}),
			pod("shop", "backend-2", "198.18.2.2", func(w *model.Workload) {
				w.Services = map[string][]model.Port{web: nil}
				w.ServiceAccount, w.Unhealthy, w.Policies = "backend", true, []string{"shop/orders"}
			}),
			pod("shop", "db", "198.18.2.3", func(w *model.Workload) {
				w.SkipInbound, w.Policies = model.PortSet{{First: 5432, Last: 5432}}, []string{"shop/strict"}
				w.SkippedBy = &model.SkippedBy{Inbound: "pod annotation tacit.mesh/skip-inbound-ports"}
			}),
			pod("shop", "pending", "198.18.2.4", func(w *model.Workload) { w.Policies = []string{"shop/never-seen"} }),
			pod("other", "client", "198.18.3.1"),
			pod("plain", "legacy", "198.18.4.1", func(w *model.Workload) { w.Protocol = model.ProtocolTCP }),
			pod("shop", "mixed-1", "198.18.5.1", func(w *model.Workload) {
				w.Services, w.Policies = map[string][]model.Port{"shop/mixed.shop.svc.cluster.local": nil}, []string{"shop/orders"}
			}),
			pod("shop", "mixed-2", "198.18.5.2", func(w *model.Workload) {
				w.Services = map[string][]model.Port{"shop/mixed.shop.svc.cluster.local": nil}
			}),
		},
		Services: []*model.Service{
			{
				Name: "backend", Namespace: "shop", Hostname: "backend.shop.svc.cluster.local", Ports: []model.Port{{Service: 80, Target: 8080}},
				Addresses: []model.NetworkAddress{{Prefix: netip.MustParsePrefix("198.19.0.1/32")}}, Affinity: time.Hour,
				Balance: model.BalanceFailover, Prefer: []model.Scope{model.ScopeZone, model.ScopeNode},
			},
			{
				Name: "mixed", Namespace: "shop", Hostname: "mixed.shop.svc.cluster.local", Ports: []model.Port{{Service: 80, Target: 80}},
				Addresses: []model.NetworkAddress{{Prefix: netip.MustParsePrefix("198.19.0.2/32")}}, Affinity: time.Hour,
			},
			{Name: "headless", Namespace: "shop", Hostname: "headless.shop.svc.cluster.local", Private: true},
		},
		Policies: []*model.Policy{
			{Name: "orders", Namespace: "shop", Scope: model.ScopeSelector, Action: model.ActionAllow, Rules: []model.Rule{{Clauses: []model.Clause{
				{Matches: []model.Match{{Principals: []model.StringMatch{model.ParseStringMatch("*/sa/frontend")}}}},
				{Matches: []model.Match{{DestinationPorts: []uint16{8080}}}},
			}}}},
			{Name: "strict", Namespace: "shop", Scope: model.ScopeSelector, Action: model.ActionDeny, Rules: []model.Rule{{Clauses: []model.Clause{
				{Matches: []model.Match{{NotPrincipals: []model.StringMatch{model.ParseStringMatch("*")}}}},
			}}}},
			{Name: "future", Namespace: "shop", Scope: model.ScopeSelector, Action: model.ActionAllow, DryRun: true, Unknown: "field 9", Rules: []model.Rule{{Clauses: []model.Clause{
				{Matches: []model.Match{{
					SourceIPs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}, NotSourceIPs: []netip.Prefix{netip.MustParsePrefix("198.18.9.0/24")},
					SourceLabels:    []model.LabelMatch{{Key: "app", Values: []model.StringMatch{model.ParseStringMatch("a*")}}},
					ServiceAccounts: []model.ServiceAccount{{Namespace: "shop", Name: "frontend"}},
					Times:           []model.TimeWindow{{First: 22 * time.Hour, Last: 6 * time.Hour}},
				}}},
			}}}},
		},
		RemovedPolicies: []string{"shop/gone"},
	})
}

func pod(namespace, name, ip string, edits ...func(*model.Workload)) *model.Workload {
	w := &model.Workload{
		UID: "Kubernetes//Pod/" + namespace + "/" + name, PodUID: "uid-" + name, Namespace: namespace, Name: name,
		ServiceAccount: name, TrustDomain: model.DefaultTrustDomain, ClusterID: "Kubernetes", Node: "node-a",
		Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Protocol: model.ProtocolHBONE, Capacity: 1,
	}
	for _, edit := range edits {
		edit(w)
	}
	return w
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func live() []Connection {
	return []Connection{
		{
			ID: "0af7651916cd43dd8448eb211c80319c", Direction: Inbound, Since: noon.Add(time.Minute), Security: "mutual_tls", Policy: "shop/orders",
			Source:      End{Address: netip.MustParseAddrPort("198.18.1.1:40002"), Workload: "shop/frontend", Identity: "spiffe://cluster.local/ns/shop/sa/frontend"},
			Destination: End{Address: netip.MustParseAddrPort("198.18.2.1:8080"), Workload: "shop/backend-1", Identity: "spiffe://cluster.local/ns/shop/sa/backend"},
			Sent:        1234, Received: 56789,
		},
		{
			ID: "1bf7651916cd43dd8448eb211c80319c", Direction: Outbound, Since: noon, Security: "mutual_tls",
			Source:      End{Address: netip.MustParseAddrPort("198.18.3.1:40003"), Workload: "other/client", Identity: "spiffe://cluster.local/ns/other/sa/client"},
			Destination: End{Address: netip.MustParseAddrPort("198.18.2.1:8080"), Workload: "shop/backend-1", Service: "backend.shop.svc.cluster.local"},
			Original:    netip.MustParseAddrPort("198.19.0.1:80"), Sent: 1, Received: 2,
		},
	}
}

func ended() []Connection {
	return []Connection{
		{
			ID: "2cf7651916cd43dd8448eb211c80319c", Direction: Inbound, Since: noon, Ended: noon.Add(time.Second), Security: "none",
			Source:      End{Address: netip.MustParseAddrPort("198.18.4.1:40004"), Workload: "plain/legacy"},
			Destination: End{Address: netip.MustParseAddrPort("198.18.2.1:8080"), Workload: "shop/backend-1"},
			Denied:      true, Policy: "shop/strict", Reason: "denied by policy shop/strict (matched: notPrincipals)",
		},
		{
			ID: "3df7651916cd43dd8448eb211c80319c", Direction: Outbound, Since: noon, Ended: noon.Add(time.Second), Security: "none",
			Source:      End{Address: netip.MustParseAddrPort("198.18.1.1:40005"), Workload: "shop/frontend"},
			Destination: End{Address: netip.MustParseAddrPort("192.0.2.1:443")}, Original: netip.MustParseAddrPort("192.0.2.1:443"),
		},
	}
}

func find(id string) []Connection {
	for _, c := range append(live(), ended()...) {
		if c.ID == id {
			return []Connection{c}
		}
	}
	return nil
}
