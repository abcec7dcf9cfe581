package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

func TestExplain(t *testing.T) {
	const vip = "198.19.0.1"
	tests := []struct {
		name string
		s    *model.Snapshot
		dst  string
		want []string
	}{
		{"nothing known", mesh(nil), "203.0.113.1:443", []string{
			`203.0.113.1 is the address of no pod and of no service that namespace "app" can see.`,
			"The connection goes on to 203.0.113.1:443 as plain TCP.",
		}},
		{"loop", mesh(nil), "127.0.0.1:15001", []string{
			"127.0.0.1:15001 is the proxy's own port in this pod: refused, it would lead back to the proxy.",
		}},
		{"not ready", model.NewSnapshot(), "203.0.113.1:443", []string{
			"The control plane has not sent its first full list of workloads and services: nothing may leave until it has.",
		}},
		{"pod", mesh(nil, pod("a", "198.18.2.1")), "198.18.2.1:80", []string{
			"198.18.2.1 is the address of pod app/a.",
			"Pod app/a is captured: port 80 is reached by mutual TLS, as spiffe://cluster.local/ns/app/sa/a.",
		}},
		{"skipped", mesh(nil, pod("a", "198.18.2.1", func(w *model.Workload) { w.SkipInbound = model.PortSet{{First: 80, Last: 90}} })), "198.18.2.1:80", []string{
			"198.18.2.1 is the address of pod app/a.",
			"Pod app/a skips inbound capture of 80-90: port 80 is reached by plain TCP.",
		}},
		{"private", mesh([]*model.Service{service("other", vip, func(v *model.Service) { v.Private = true })}), vip + ":80", []string{
			`198.19.0.1 is the address of no pod and of no service that namespace "app" can see.`,
			"Service other/web.other.svc.cluster.local has it, but is visible to its own namespace only.",
			"The connection goes on to 198.19.0.1:80 as plain TCP.",
		}},
		{"unknown port", mesh([]*model.Service{service("app", vip)}), vip + ":8080", []string{
			"198.19.0.1 is a virtual address of service app/web.app.svc.cluster.local.",
			"The service has no port 8080, only 80, 81: refused.",
		}},
		{"endpoints", mesh([]*model.Service{service("app", vip, func(v *model.Service) { v.Affinity = time.Hour }), service("bbb", vip)},
			pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.Unhealthy = true }),
			pod("b", "198.18.2.2", of(), func(w *model.Workload) { w.Protocol = model.ProtocolTCP }),
			pod("c", "198.18.2.3", of(), func(w *model.Workload) { w.Terminating = true })), vip + ":80", []string{
			"198.19.0.1 is a virtual address of service app/web.app.svc.cluster.local.",
			"1 further service with the same address: this one is used because it is in the client's namespace.",
			"Port 80 leads to port 8080, unless an endpoint has its own.",
			"Endpoint app/a is unhealthy: left out.",
			"2 of 3 endpoints may be used, tried in an order fixed by the client's address 198.18.1.1 (ClientIP affinity).",
			"Pod app/b is not captured: port 8080 is reached by plain TCP.",
			"Pod app/c is captured: port 8080 is reached by mutual TLS, as spiffe://cluster.local/ns/app/sa/c (terminating, so after all others).",
		}},
		{"none", mesh([]*model.Service{service("app", vip)}, pod("a", "198.18.2.1", of())), vip + ":81", []string{
			"198.19.0.1 is a virtual address of service app/web.app.svc.cluster.local.",
			"Port 81 leads to a named port, which each endpoint resolves for itself.",
			"Endpoint app/a does not have the named port: left out.",
			"No endpoint may be used: refused.",
		}},
		{"empty", mesh([]*model.Service{service("app", vip)}), vip + ":80", []string{
			"198.19.0.1 is a virtual address of service app/web.app.svc.cluster.local.",
			"Port 80 leads to port 8080, unless an endpoint has its own.",
			"The service has no endpoint: refused.",
		}},
		{"locality", mesh([]*model.Service{service("app", vip, func(v *model.Service) {
			v.Balance, v.Prefer = model.BalanceFailover, []model.Scope{model.ScopeRegion, model.ScopeNode}
		})}, pod("a", "198.18.2.1", of(), func(w *model.Workload) { w.Node, w.Capacity = "node-b", 3 })), vip + ":80", []string{
			"198.19.0.1 is a virtual address of service app/web.app.svc.cluster.local.",
			"Port 80 leads to port 8080, unless an endpoint has its own.",
			"1 of 1 endpoint may be used, tried in random order by capacity among those nearest by the locality preference, which come first.",
			"Pod app/a is captured: port 8080 is reached by mutual TLS, as spiffe://cluster.local/ns/app/sa/a (matches 1 of 2 scopes of the locality preference; capacity 3).",
		}},
		{"passthrough", mesh([]*model.Service{service("app", vip, func(v *model.Service) { v.Balance = model.BalancePassthrough })}), vip + ":80", []string{
			"198.19.0.1 is a virtual address of service app/web.app.svc.cluster.local.",
			"The service asks for no choice of endpoint: the connection goes on to 198.19.0.1:80 as plain TCP.",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Resolve(tt.s, client, addrPort(tt.dst)).Explain()
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestExplainIsBounded(t *testing.T) {
	var endpoints []*model.Workload
	for i := range 200 {
		endpoints = append(endpoints, pod(fmt.Sprintf("e%d", i), fmt.Sprintf("198.18.2.%d", i), of(), func(w *model.Workload) { w.Unhealthy = i%2 == 0 }))
	}
	steps := Resolve(mesh([]*model.Service{service("app", "198.19.0.1")}, endpoints...), client, addrPort("198.19.0.1:80")).Explain()
	text := strings.Join(steps, "\n")
	if len(steps) > 2*explained+6 || !strings.Contains(text, "90 further endpoints left out as well.") || !strings.Contains(text, "90 further endpoints may be used as well.") {
		t.Errorf("%d steps:\n%s", len(steps), text)
	}
}
