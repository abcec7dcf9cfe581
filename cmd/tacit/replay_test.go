package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/model"
)

const (
	replayedMesh = `
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {tacit.mesh/dataplane: enabled}, annotations: {tacit.mesh/redirection: enabled}}
spec: {nodeName: node-a, serviceAccountName: b, containers: [{name: b, image: b}]}
status: {podIPs: [{ip: 198.18.1.2}]}
`
	replayedStrict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`
)

// A pair of a mesh that nobody serves is explained, by the policies that it has
// and by others.
func TestExplainOffline(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"mesh.yaml": replayedMesh, "strict.yaml": replayedStrict} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair := []string{"explain", "--from", "203.0.113.9", "--to", "shop/b:80", "--mesh", filepath.Join(dir, "mesh.yaml")}
	strict := []string{"--policies", filepath.Join(dir, "strict.yaml")}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{pair, 0, "ALLOWED"},
		{append(slices.Clone(pair), strict...), exitFound, "istio_converted_static_strict"},
		{append(slices.Clone(pair), "-o", "json"), 0, `"outcome":"allowed"`},
		{append(slices.Clone(pair), "-o", "yaml"), 0, "outcome: allowed\n"},
		{append(slices.Clone(pair), "-o", "toml"), 1, "want text, json or yaml"},
		{append(slices.Clone(pair), "--to", "shop/bb:80"), 1, "did you mean shop/b"},
		{append([]string{"explain", "--from", "shop/a", "--to", "shop/b:80"}, strict...), 1, "--mesh, with or without --policies, goes with --from and --to"},
		{append([]string{"explain", "4bf9"}, pair[5:]...), 1, "goes with --from and --to"},
	} {
		if code, out, errOut := tacit(test.args...); code != test.code || !strings.Contains(out+errOut, test.want) {
			t.Errorf("%v: exit %d, %q, %q; want %d, %q", test.args[1:], code, out, errOut, test.code, test.want)
		}
	}
}

// Ports that a pod skips are as little enforced offline as in the mesh, and what
// has no effect as written is said.
func TestExplainOfflineSkips(t *testing.T) {
	dir := t.TempDir()
	skipping := strings.Replace(replayedMesh, "annotations: {", `annotations: {tacit.mesh/skip-inbound-ports: "80", `, 1)
	for name, text := range map[string]string{"mesh.yaml": skipping, "strict.yaml": replayedStrict} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair := []string{"explain", "--from", "203.0.113.9", "--to", "shop/b:80", "--mesh", filepath.Join(dir, "mesh.yaml"), "--policies", filepath.Join(dir, "strict.yaml")}
	for _, test := range []struct {
		args          []string
		code          int
		want, wantErr string
	}{
		{nil, 0, "covers 80, by pod annotation tacit.mesh/skip-inbound-ports: its proxy never sees", "PeerAuthentication shop/default: not enforced on"},
		{[]string{"--skips", "listed", "--skip-ports", "80"}, 0, "UNCHECKED", "PeerAuthentication shop/default: not enforced on"},
		{[]string{"--skips", "none"}, exitFound, "istio_converted_static_strict", "Pod shop/b: pod annotation tacit.mesh/skip-inbound-ports"},
		{[]string{"--skips", "some"}, 1, "", "--skips=some: want any, listed or none"},
	} {
		code, out, errOut := tacit(append(slices.Clone(pair), test.args...)...)
		if code != test.code || !strings.Contains(out, test.want) || !strings.Contains(errOut, test.wantErr) {
			t.Errorf("%v: exit %d, %q, %q; want %d, %q, %q", test.args, code, out, errOut, test.code, test.want, test.wantErr)
		}
	}
}

// Recorded flows are decided about anew, those that the proxy remembers and
// those of a file alike.
func TestReplayCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mesh, strict, none := file("mesh.yaml", replayedMesh), file("strict.yaml", replayedStrict), file("none.yaml", replayedMesh)
	socket, log := flowProxy(t, "node-a")
	plain := denial("4bf9")
	plain.Outcome, plain.Err, plain.Security, plain.Policy = "ok", nil, "plain", ""
	plain.Source = flows.End{Addr: netip.MustParseAddrPort("203.0.113.9:40000"), Identity: model.Identity{}}
	log.Add(plain)
	code, recorded, errOut := tacit("flows", "-o", "json", "--socket", socket)
	if code != 0 {
		t.Fatalf("flows: exit %d, %q", code, errOut)
	}
	dump, other := file("flows.json", recorded), file("other.json", `{"workloads":[]}`)
	for _, args := range []string{"--socket " + socket, "--flows " + dump} {
		code, out, errOut := tacit(append([]string{"replay", "--mesh", mesh, "--policies", strict}, strings.Fields(args)...)...)
		if code != exitFound || !strings.Contains(out, "newly denied  1      203.0.113.9  shop/b:80") || !strings.Contains(out, "4bf9") ||
			!strings.Contains(out, "1 flows replayed: 1 newly denied, 0 newly allowed") {
			t.Errorf("%s: exit %d, %q, %q", args, code, out, errOut)
		}
		code, out, _ = tacit(append([]string{"replay", "-o", "json", "--mesh", mesh, "--policies", strict}, strings.Fields(args)...)...)
		if code != exitFound || !strings.Contains(out, `"change":"newly_denied"`) || !strings.Contains(out, `"partial":false,"missing":[]`) {
			t.Errorf("%s as JSON: exit %d, %q", args, code, out)
		}
	}
	partial := file("partial.json", strings.Replace(recorded, `"missing":[]`, `"missing":[{"node":"node-b","error":"away"}]`, 1))
	if _, out, _ := tacit("replay", "--mesh", mesh, "--policies", strict, "--flows", partial); !strings.Contains(out, "PARTIAL: 1 of 2 nodes gave no answer: node-b.") {
		t.Errorf("of a partial record: %q", out)
	}
	for args, want := range map[string]string{
		"--policies " + strict: "name the candidate policies with --policies and the mesh's objects with --mesh",
		"--mesh " + mesh + " --policies " + none + " --flows " + dump:       "there is no policy among the candidates",
		"--mesh " + mesh + " --policies " + strict + " --flows " + other:    "it has no flows",
		"--mesh " + mesh + " --policies " + strict + " --flows " + mesh:     "is not what tacit flows -o json of this version writes",
		"--mesh " + mesh + " --policies " + dir + "/absent --flows " + dump: "absent",
	} {
		if code, _, errOut := tacit(append([]string{"replay"}, strings.Fields(args)...)...); code != 1 || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d, %q; want %q", args, code, errOut, want)
		}
	}
}
