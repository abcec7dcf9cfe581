package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/internal/version"
	"github.com/tacit-mesh/tacit/proxy/admin"
	api "github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// exportOf is what a proxy that was sent the mesh would export, with a resource
// of a type that is not known.
func exportOf(t *testing.T, s *model.Snapshot, unknown bool) []byte {
	t.Helper()
	addresses := &api.SavedType{TypeUrl: wire.AddressType, Complete: true}
	for _, w := range s.Workloads() {
		body, err := wire.EncodeWorkload(w)
		if err != nil {
			t.Fatal(err)
		}
		addresses.Resources = append(addresses.Resources, &api.SavedResource{Name: w.UID, Resource: body})
	}
	policies := &api.SavedType{TypeUrl: wire.AuthorizationType, Complete: true}
	for _, p := range s.Policies() {
		body, err := wire.EncodePolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		policies.Resources = append(policies.Resources, &api.SavedResource{Name: p.Key(), Resource: body})
	}
	state := &api.SavedState{Types: []*api.SavedType{policies, addresses}}
	if unknown {
		state.Types = append(state.Types, &api.SavedType{TypeUrl: "type.googleapis.com/of.Tomorrow", Resources: []*api.SavedResource{{Resource: &anypb.Any{}}}})
	}
	text, err := proto.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// guarded is a mesh in which nobody but pod a may call b.
func guarded() *model.Snapshot {
	return mesh().Apply(model.Update{Policies: []*model.Policy{{
		Name: "only-a", Namespace: "shop", Scope: model.ScopeNamespace, Action: model.ActionAllow,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{Principals: []model.StringMatch{model.ParseStringMatch("cluster.local/ns/shop/sa/a")}}}}}}},
	}}})
}

const deniedLine = `{"level":"warn","time":"2026-05-01T12:00:00Z","msg":"connection denied","id":"4bf92f3577b34da6a3ce929d0e0e4736","direction":"inbound","security":"plain","outcome":"denied",` +
	`"src.addr":"203.0.113.9:40000","dst.addr":"198.18.1.2:80","dst.workload":"b","dst.namespace":"shop","policy":"shop/only-a","reason":"not_allowed","attribute":"principals"}`

// A dump says later what the mesh that it is of would have done.
func TestExplainDump(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content any) string {
		t.Helper()
		text, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	own := write("own.json", admin.Dump{Version: version.String(), Export: exportOf(t, guarded(), false)})
	other := write("other.json", admin.Dump{Version: "v99", Export: exportOf(t, guarded(), true)})
	text := write("text.json", map[string]any{"version": "v0", "generation": 7})
	torn := write("torn.json", admin.Dump{Version: "v99", Export: []byte("\xff")})
	for _, test := range []struct {
		args         []string
		code         int
		want, errOut string
	}{
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", own}, 0, "ALLOWED", ""},
		{[]string{"--from", "203.0.113.9", "--to", "shop/b:80", "--dump", own}, exitFound, "To change it: The client must come with an identity", ""},
		{[]string{"--from", "203.0.113.9", "--to", "shop/b:80", "--dump", own, "-o", "json"}, exitFound, `"outcome":"denied"`, ""},
		{[]string{"--from", "shop/a", "--to", "shop/bb:80", "--dump", own}, exitFailed, "", "did you mean shop/b"},
		{[]string{deniedLine, "--dump", own}, exitFound, "shop/only-a, principals", ""},
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", other}, 0, "ALLOWED", "is of another version, v99"},
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", other}, 0, "ALLOWED", "of.Tomorrow are not known"},
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", text}, exitFailed, "", "write it with tacit dump --export"},
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", torn}, exitFailed, "", "v99"},
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", filepath.Join(dir, "none")}, exitFailed, "", "no such file"},
		{[]string{"--from", "shop/a", "--to", "shop/b:80", "--dump", own, "--mesh", own}, exitFailed, "", "--mesh, with or without --policies, goes"},
		{[]string{"4bf9", "--from", "shop/a", "--to", "shop/b:80", "--dump", own}, exitFailed, "", "or with a line of the log, and so does --dump"},
		{[]string{"4bf9", "--dump", own}, exitFailed, "", "or with a line of the log, and so does --dump"},
	} {
		code, out, errOut := tacit(append([]string{"explain"}, test.args...)...)
		if code != test.code || !strings.Contains(out, test.want) || !strings.Contains(errOut, test.errOut) || test.errOut == "" && errOut != "" {
			t.Errorf("%v: exit %d, %q, %q; want %d, %q, %q", test.args, code, out, errOut, test.code, test.want, test.errOut)
		}
	}
}

// What a proxy exports is what the command reads, and a line of the log is
// explained by it once no proxy remembers the connection.
func TestExplainLineOfLog(t *testing.T) {
	remembered := []admin.Connection{{ID: strings.Repeat("a", 32), Direction: admin.Inbound, Source: admin.End{Address: netip.MustParseAddrPort("198.18.1.1:1")},
		Destination: admin.End{Address: netip.MustParseAddrPort("198.18.1.2:80"), Workload: "shop/b"}, Denied: true, Reason: "denied as remembered"}}
	socket := serveAdmin(t, admin.Server{
		Node: "node-a", Snapshot: guarded, Export: func() ([]byte, error) { return exportOf(t, guarded(), false), nil },
		Find: func(id string) []admin.Connection {
			if id == remembered[0].ID {
				return remembered
			}
			return nil
		},
	})
	suppressed := `{"msg":"connection denied, repeated","direction":"inbound","src.ip":"203.0.113.9","dst.addr":"198.18.1.2:80","policy":"shop/only-a","reason":"not_allowed","suppressed":7}`
	allowed := `{"id":"4bf92f3577b34da6a3ce929d0e0e4736","direction":"inbound","outcome":"ok","src.addr":"198.18.1.1:40000","src.workload":"a","src.namespace":"shop",` +
		`"src.identity":"spiffe://cluster.local/ns/shop/sa/a","dst.addr":"198.18.1.2:80","dst.workload":"b","dst.namespace":"shop"}`
	for _, test := range []struct {
		line, stdin string
		code        int
		want        string
	}{
		{line: deniedLine, code: exitFound, want: "As of now: Pod shop/b, port 80"},
		{line: "tacit-proxy-x " + deniedLine, code: exitFound, want: "203.0.113.9:40000 to shop/b 198.18.1.2:80"},
		{line: suppressed, code: exitFound, want: "denied: not_allowed, shop/only-a"},
		{line: allowed, code: 0, want: "spiffe://cluster.local/ns/shop/sa/a"},
		{line: strings.Replace(deniedLine, "4bf92f3577b34da6a3ce929d0e0e4736", remembered[0].ID, 1), code: exitFound, want: "denied as remembered"},
		{line: "-", stdin: "\n" + deniedLine + "\n", code: exitFound, want: "As of now"},
		{line: "-", stdin: remembered[0].ID + "\n", code: exitFound, want: "denied as remembered"},
		{line: "-", code: exitFailed, want: "no line in the standard input"},
		{line: `{"msg":"started"}`, code: exitFailed, want: "it has no dst.addr"},
		{line: `{"dst.addr":"198.18.1.2:80"}`, code: exitFailed, want: "neither src.addr nor src.ip"},
		{line: `{"dst.addr`, code: exitFailed, want: "no line of a proxy's log"},
	} {
		var out bytes.Buffer
		root := command()
		root.SetArgs([]string{"explain", test.line, "--socket", socket})
		root.SetIn(strings.NewReader(test.stdin))
		code := execute(t.Context(), root, &out, &out)
		if code != test.code || !strings.Contains(out.String(), test.want) {
			t.Errorf("%s: exit %d, %s; want %d, %q", test.line, code, out.String(), test.code, test.want)
		}
	}
	file := filepath.Join(t.TempDir(), "dump.json")
	_, dump, _ := tacit("dump", "--export", "--socket", socket)
	if err := os.WriteFile(file, []byte(dump), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errOut := tacit("explain", "--from", "shop/a", "--to", "shop/b:80", "--dump", file); code != 0 || errOut != "" {
		t.Errorf("by the dump: exit %d, %s%s", code, out, errOut)
	}
}
