package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func TestStatus(t *testing.T) {
	tests := map[string]admin.Status{
		"status": {
			Version: "v1.2.3", Node: "node-a", Started: noon.Add(-26 * time.Hour), Generation: 12, AddressesReady: true, PoliciesReady: true,
			Workloads: 7, Services: 2, Policies: 3, Inbound: 1, Outbound: 20, RecentDenials: 4,
			Sections: map[string]json.RawMessage{
				"xds":          json.RawMessage(`{"server":"198.18.0.1:15012","connected":true,"rejected":null}`),
				"certificates": json.RawMessage(`[{"identity":"spiffe://cluster.local/ns/shop/sa/a","ends":"2026-05-02T12:00:00Z"},{"identity":"spiffe://cluster.local/ns/shop/sa/b","failure":"CA: unavailable"}]`),
				"pods":         json.RawMessage(`[{"pod":"shop/a-long-name","addresses":["198.18.1.1","fd00:7ac1::1"],"spares":{"v4":2}},{"pod":"shop/b","addresses":[]}]`),
				"sockets":      json.RawMessage(`[]`),
				"words":        json.RawMessage(`["one","two"]`),
				"number":       json.RawMessage(`7`),
			},
		},
		"status-bypassed": {Version: "v1.2.3", Node: "node-a", Started: noon, Bypasses: []string{"shop/one", "shop/two\x1b[2J"}},
		"status-new":      {Version: "v1.2.3", Node: "node-a", Started: noon},
	}
	for name, status := range tests {
		t.Run(name, func(t *testing.T) {
			golden(t, name, func(p Printer) error { return p.Status(status) })
		})
	}
}

func TestNodes(t *testing.T) {
	all := []Node{
		{Name: "node-a", Status: admin.Status{Version: "v1", Started: noon.Add(-time.Hour), AddressesReady: true, PoliciesReady: true, Services: 3, Bypasses: []string{"shop/one", "shop/two"}}},
		{Name: "node-b", Status: admin.Status{Version: "v1", Started: noon, Bypasses: []string{"shop/two"}}},
		{Name: "node-c", Err: errors.New("no answer")},
	}
	golden(t, "nodes", func(p Printer) error { return p.Nodes(all) })
	golden(t, "nodes-wide", func(p Printer) error { p.Wide = true; return p.Nodes(all) })
	golden(t, "nodes-calm", func(p Printer) error { return p.Nodes(all[2:]) })
}

func TestCertificates(t *testing.T) {
	certificate := func(account string, left, life time.Duration, problem string) Certificate {
		return Certificate{Node: "node-a", Certificate: admin.Certificate{
			Identity: "spiffe://td/ns/shop/sa/" + account, Issuer: "O=SPIFFE", Serial: "0123456789abcdef0123",
			NotBefore: noon.Add(left - life), NotAfter: noon.Add(left), Renewal: noon.Add(left - life/2), Error: problem, Failures: uint64(len(problem)),
		}}
	}
	all := []Certificate{
		{Node: "node-a", Certificate: admin.Certificate{Identity: "spiffe://td/ns/shop/sa/none", Error: "no entry\x1b[2J", Failures: 3}},
		certificate("ended", -time.Minute, time.Hour, "CA away"),
		certificate("late", time.Minute, time.Hour, "CA away"),
		certificate("good", 20*time.Hour, 24*time.Hour, ""),
		certificate("soon", 30*time.Hour, 24*time.Hour, ""),
	}
	golden(t, "certificates", func(p Printer) error { return p.Certificates(all) })
	golden(t, "certificates-wide", func(p Printer) error { p.Wide = true; return p.Certificates(all[1:2]) })
	golden(t, "certificates-none", func(p Printer) error { return p.Certificates(nil) })
}

func TestConnections(t *testing.T) {
	client := admin.End{Address: netip.MustParseAddrPort("198.18.1.1:40002"), Workload: "shop/frontend"}
	server := admin.End{Address: netip.MustParseAddrPort("198.18.2.1:8080"), Workload: "shop/backend-1"}
	viaService := server
	viaService.Service = "backend.shop.svc.cluster.local"
	all := []admin.Connection{
		{ID: "0af7", Direction: admin.Inbound, Source: client, Destination: server, Security: "mutual_tls", Since: noon.Add(-70 * time.Second), Sent: 1023, Received: 1 << 20},
		{ID: "1bf7", Direction: admin.Outbound, Source: client, Destination: viaService, Original: netip.MustParseAddrPort("198.19.0.1:80"), Security: "mutual_tls", Since: noon.Add(-50 * time.Hour), Sent: 1 << 50, Received: 1536},
		{ID: "2cf7", Direction: admin.Inbound, Source: admin.End{Address: client.Address}, Destination: server, Since: noon, Ended: noon, Denied: true, Reason: "denied by policy shop/strict: notPrincipals matched"},
		{ID: "3df7", Direction: admin.Outbound, Source: client, Since: noon.Add(time.Second), Ended: noon, Reason: "reset by \x1b[2Jpeer"},
		{ID: "4ef7", Direction: admin.Outbound, Source: client, Destination: server, Since: noon.Add(-2 * time.Hour), Ended: noon},
		{ID: "5ff7", Direction: admin.Outbound, Source: client, Destination: server, Since: noon, Ended: noon, Denied: true},
	}
	golden(t, "connections", func(p Printer) error { return p.Connections(all) })
	golden(t, "connections-wide", func(p Printer) error { p.Wide = true; return p.Connections(all[:2]) })
	golden(t, "connections-none", func(p Printer) error { return p.Connections(nil) })
}

// The explanations that the proxy's own tests pin down.
func TestExplanation(t *testing.T) {
	for _, name := range []string{"explain-allowed", "explain-strict", "explain-depends", "explain-skipped-by-both", "explain-id-denied", "explain-unknown-port"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("..", "..", "..", "proxy", "admin", "testdata", name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var e admin.Explanation
			if err := json.Unmarshal(text, &e); err != nil {
				t.Fatal(err)
			}
			golden(t, name, func(p Printer) error { return p.Explanation(e) })
		})
	}
	t.Run("colors", func(t *testing.T) {
		e := admin.Explanation{Outcome: admin.Denied, Summary: "no\x1b[0m.", Steps: []admin.Step{{Stage: "route", Mark: "ok", Text: "yes"}, {Stage: "arrival", Mark: "note", Text: "hm"}, {Stage: "policy", Mark: "stop", Text: "no"}}}
		golden(t, "explain-colors", func(p Printer) error { p.Color = true; return p.Explanation(e) })
	})
}

func golden(t *testing.T, name string, show func(Printer) error) {
	t.Helper()
	var got bytes.Buffer
	if err := show(Printer{Out: &got, Now: noon}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, got.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got; write it anew with -update):\n%s", name, diff)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestWriteError(t *testing.T) {
	p := Printer{Out: broken{}}
	for name, err := range map[string]error{
		"status":      p.Status(admin.Status{}),
		"connections": p.Connections([]admin.Connection{{}}),
		"none":        p.Connections(nil),
		"explanation": p.Explanation(admin.Explanation{}),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want the error of writing", name, err)
		}
	}
}
