package admin

import (
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Where mutual TLS is to be, both ends' certificates are steps on the way, as far
// as the node has them; without a valid one there is no way.
func TestExplainCertificates(t *testing.T) {
	certificate := func(account string, from, until time.Duration, problem string) Certificate {
		return Certificate{Identity: "spiffe://cluster.local/ns/shop/sa/" + account, Issuer: "CN=root", Serial: account, NotBefore: noon.Add(from), NotAfter: noon.Add(until), Error: problem}
	}
	frontend, backend := certificate("frontend", -time.Hour, time.Hour, ""), certificate("backend", -time.Hour, time.Hour, "")
	for name, test := range map[string]struct {
		node    string
		all     []Certificate
		from    string
		outcome Outcome
		want    []string                 // the texts of the steps, in their order
		brought map[string][]Certificate // of other nodes
	}{
		"both are here": {"node-a", []Certificate{backend, frontend}, "shop/frontend", Allowed, []string{
			"Pod shop/frontend proves its identity by certificate frontend of CN=root, valid until 2026-05-01 13:00:00Z.",
			"Pod shop/backend-1 proves its identity by certificate backend of CN=root, valid until 2026-05-01 13:00:00Z.",
		}, nil},
		"both are elsewhere": {"node-b", nil, "shop/frontend", Allowed, []string{
			"That of pod shop/frontend is node node-a's to show: tacit certs there.", "That of pod shop/backend-1 is node node-a's to show: tacit certs there.",
		}, nil},
		"one of several is valid": {"node-a", []Certificate{frontend, certificate("frontend", -2*time.Hour, -time.Hour, "CA away"), {Identity: frontend.Identity}, backend}, "shop/frontend", Allowed, []string{
			"Not all 3 certificates of spiffe://cluster.local/ns/shop/sa/frontend are valid; tacit certs shows which is that of pod shop/frontend. " +
				"One pod: its certificate has ended, at 2026-05-01 11:00:00Z: CA away.", "certificate backend of",
		}, nil},
		"all of several are valid": {"node-a", []Certificate{frontend, frontend, backend}, "shop/frontend", Allowed, []string{"certificate frontend of", "certificate backend of"}, nil},
		"none of several is valid": {"node-a", []Certificate{certificate("frontend", -2*time.Hour, -time.Hour, "CA away"), {Identity: frontend.Identity}, backend}, "shop/frontend", Denied, []string{
			"Pod shop/frontend cannot prove its identity: its certificate has ended, at 2026-05-01 11:00:00Z: CA away.",
		}, nil},
		"the client's has ended": {"node-a", []Certificate{certificate("frontend", -2*time.Hour, -time.Hour, "CA away"), backend}, "shop/frontend", Denied, []string{
			"Pod shop/frontend cannot prove its identity: its certificate has ended, at 2026-05-01 11:00:00Z: CA away.",
		}, nil},
		"the server's is yet to come": {"node-a", []Certificate{frontend, certificate("backend", time.Minute, time.Hour, "")}, "shop/frontend", Denied, []string{
			"certificate frontend of", "Pod shop/backend-1 cannot prove its identity: its certificate is not valid before 2026-05-01 12:01:00Z, or the clock is wrong.",
		}, nil},
		"there is none": {"node-a", []Certificate{backend}, "shop/frontend", Denied, []string{
			"Pod shop/frontend cannot prove its identity: there is no certificate yet: the proxy has not asked for one.",
		}, nil},
		"one is on no node": {"node-a", []Certificate{backend}, "shop/outside", Allowed, []string{
			"Pod shop/outside is on no node of this mesh: its certificate is not to be seen from here.", "certificate backend of",
		}, nil},
		"plain TCP needs none": {"node-a", nil, "plain/legacy", Denied, nil, nil},
		"both are brought":     {"node-b", nil, "shop/frontend", Allowed, []string{"certificate frontend of", "certificate backend of"}, map[string][]Certificate{"node-a": {backend, frontend}}},
		"one that is brought has ended": {"node-b", nil, "shop/frontend", Denied, []string{
			"certificate frontend of", "Pod shop/backend-1 cannot prove its identity: its certificate has ended, at 2026-05-01 11:00:00Z.",
		}, map[string][]Certificate{"node-a": {frontend, certificate("backend", -2*time.Hour, -time.Hour, "")}}},
	} {
		t.Run(name, func(t *testing.T) {
			outside := pod("shop", "outside", "198.18.9.9", func(w *model.Workload) { w.ServiceAccount, w.Node = "frontend", "" })
			e := &explainer{snapshot: shop().Apply(model.Update{Workloads: []*model.Workload{outside}}), now: noon, node: test.node, certificates: func() []Certificate { return test.all }, elsewhere: test.brought}
			if err := e.pair(test.from, "shop/backend-1:8080"); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range e.Steps {
				if asks := strings.Contains(s.Text, "to show"); asks != (s.Ask != nil) || asks && s.Ask.Node != "node-a" {
					t.Errorf("step %q: to ask: %+v", s.Text, s.Ask)
				}
				if s.Stage == "certificate" {
					got = append(got, s.Text)
				}
			}
			if e.Outcome != test.outcome || len(got) != len(test.want) {
				t.Fatalf("%s: %q; want %s, %q", e.Outcome, got, test.outcome, test.want)
			}
			for i, want := range test.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("step %q, want %q", got[i], want)
				}
			}
			if lacks := strings.Contains(strings.Join(got, ""), "cannot"); lacks != strings.Contains(e.Change, "tacit certs") {
				t.Errorf("to change it: %q", e.Change)
			}
		})
	}
}

// A connection that came by mutual TLS would not now, without a certificate.
func TestExplainCertificateOfRecorded(t *testing.T) {
	e := &explainer{snapshot: shop(), now: noon, node: "node-a", certificates: func() []Certificate { return nil }}
	if err := e.connection("", live()[:1]); err != nil || e.Outcome != Denied || !strings.Contains(e.Summary, "pod shop/backend-1 has no valid certificate") {
		t.Errorf("%v: %s, %s", err, e.Outcome, e.Summary)
	}
}
