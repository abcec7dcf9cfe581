package main

import (
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// -n is the namespace of pods that are named without one, as everybody knows it.
func TestNamespaceOfPods(t *testing.T) {
	for _, test := range []struct {
		in           podsIn
		name, client string // of a pod; "" of a target's client
		want         string
	}{
		{"shop", "web", "", "shop/web"},
		{"shop", "web/curl", "", "web/curl"},
		{"shop", "10.0.0.1", "", "10.0.0.1"},
		{"shop", "fd00::1", "", "fd00::1"},
		{"shop", "", "", ""},
		{"", "web", "", "web"},
		{"shop", "web:80", "shop/frontend", "web:80"}, // by its DNS
		{"shop", "web:80", "other/client", "shop/web:80"},
		{"shop", "web:80", "203.0.113.9", "shop/web:80"},
		{"shop", "shop/web:80", "other/client", "shop/web:80"},
		{"shop", "web.shop:80", "other/client", "web.shop:80"},
		{"shop", "10.0.0.1:80", "other/client", "10.0.0.1:80"},
		{"shop", "[fd00::1]:80", "other/client", "[fd00::1]:80"},
		{"shop", "web", "other/client", "web"}, // which the proxy finds fault with
		{"", "web:80", "other/client", "web:80"},
	} {
		got := test.in.pod(test.name)
		if test.client != "" {
			got = test.in.target(test.client, test.name)
		}
		if got != test.want {
			t.Errorf("-n %q: %q, to which %q connects, is %q, want %q", test.in, test.name, test.client, got, test.want)
		}
	}
	socket, log := flowProxy(t, "node-a")
	log.Add(denial("4bf9"))
	live := serveAdmin(t, admin.Server{Node: "node-a", Snapshot: mesh, Live: func() []admin.Connection {
		return []admin.Connection{{ID: "4bf9", Source: admin.End{Workload: "shop/a"}}, {ID: "5bf9", Source: admin.End{Workload: "web/a"}}}
	}})
	for args, want := range map[string]string{
		"flows -n shop a --socket " + socket:                             "shop/b:80",
		"flows -n shop --socket " + socket:                               "shop/b:80",
		"flows -n shop --to b --from 198.18.1.1 --socket " + socket:      "shop/b:80",
		"flows -n shop --to a --socket " + socket:                        "No such flows.",
		"tap -n shop a --for 1ms --socket " + socket:                     "",
		"explain -n shop --from a --to b:80 --socket " + socket:          "Pod shop/b, port 80",
		"explain --from shop/a --to b:80 --socket " + socket:             "Pod shop/b, port 80",
		"explain -n shop --from 198.18.1.1 --to b:80 --socket " + socket: "Pod shop/b, port 80",
		"connections -n web --socket " + live:                            "5bf9",
		"connections -n shop --from a --socket " + live:                  "4bf9",
		"__complete flows -n shop --socket " + socket + " ":              "a\nb\n:4\n",
		"__complete explain -n shop --socket " + socket + " --from a":    "a\n:4\n",
	} {
		code, out, errOut := tacit(strings.Split(args, " ")...)
		if code != 0 || !strings.Contains(out, want) || strings.Contains(args, "connections") && strings.Count(out, "bf9") != 1 {
			t.Errorf("%s: exit %d, %q, %q; want %q", args, code, out, errOut, want)
		}
	}
	if code, _, errOut := tacit("flows", "-n", "shoq", "--socket", socket); code != 1 || !strings.Contains(errOut, "did you mean shop/") {
		t.Errorf("a namespace that there is not: exit %d, %q", code, errOut)
	}
	if code, _, errOut := tacit("status", "-n", "shop", "--socket", socket); code != 1 || !strings.Contains(errOut, "see tacit status --help") {
		t.Errorf("a command that names no pods: exit %d, %q", code, errOut)
	}
}
