package replay

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/files"
)

const (
	objects = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {tacit.mesh/redirection: enabled}}
spec: {nodeName: a, serviceAccountName: web, containers: [{name: web, image: web}]}
status: {podIPs: [{ip: 198.18.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}, annotations: {tacit.mesh/redirection: enabled}}
spec: {nodeName: b, serviceAccountName: api, containers: [{name: api, image: api}]}
status: {podIPs: [{ip: 198.18.2.1}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/shop/sa/web"]}}]
  - from: [{source: {ipBlocks: ["203.0.113.0/24"]}}]
`
	strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`
	open = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: ALLOW
  rules: [{from: [{source: {namespaces: [shop]}}]}, {from: [{source: {ipBlocks: ["203.0.113.0/24"]}}]}]
`
	paths = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"], ports: ["8080"]}}]}]
`
	revoked = `
apiVersion: policy.tacit.mesh/v1alpha1
kind: RevokedIdentity
metadata: {name: web, namespace: tacit-system}
spec: {identity: "spiffe://cluster.local/ns/shop/sa/web"}
`
	headers = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: headers, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: DENY
  rules: [{when: [{key: "request.headers[x-debug]", values: ["*"]}]}]
`
)

func read(t *testing.T, text string) build.Objects {
	t.Helper()
	file := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, errs := files.Read(file)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return *o
}

// flow is a connection from the web pod to the api pod that ended well.
func flow(edits ...func(*flows.Flow)) flows.Flow {
	f := flows.Flow{
		Kind: "ended", ID: "1", Direction: "inbound", Outcome: "ok", Security: "mtls", Weight: 1, Began: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
		Source: flows.Peer{Address: netip.MustParseAddrPort("198.18.1.1:40000"), Namespace: "shop", Pod: "web",
			Identity: "spiffe://cluster.local/ns/shop/sa/web"},
		Destination: flows.Peer{Address: netip.MustParseAddrPort("198.18.2.1:8080"), Namespace: "shop", Pod: "api"},
	}
	for _, edit := range edits {
		edit(&f)
	}
	return f
}

func outside(f *flows.Flow) {
	f.Source, f.Security = flows.Peer{Address: netip.MustParseAddrPort("203.0.113.9:40000")}, "plain"
}

func other(f *flows.Flow) {
	f.Source.Pod, f.Source.Identity = "job", "spiffe://cluster.local/ns/shop/sa/job"
	f.Source.Address = netip.MustParseAddrPort("198.18.1.2:40000")
}

func denied(reason string) func(*flows.Flow) {
	return func(f *flows.Flow) { f.Outcome, f.Reason = "denied", reason }
}

// by names the policy that denied a flow.
func by(policy string) func(*flows.Flow) {
	return func(f *flows.Flow) { f.Outcome, f.Reason, f.Policy = "denied", "denied", policy }
}

func get(path string) func(*flows.Flow) {
	return func(f *flows.Flow) {
		f.Kind, f.HTTP = "request", &flows.HTTP{Method: "GET", Host: "api", Path: path, Status: 200}
	}
}

func TestRun(t *testing.T) {
	const (
		noIdentity = "denied by policy tacit-system/istio_converted_static_strict (matched: notPrincipals)"
		unread     = "a policy looks into its requests, which were not read when it was recorded"
	)
	for _, test := range []struct {
		name, candidate string
		flow            flows.Flow
		instead         bool
		change          Change
		why             string
	}{
		{"STRICT, with an identity", strict, flow(), false, "", ""},
		{"STRICT, in clear", strict, flow(outside), false, NewlyDenied, noIdentity},
		{"the policy that there is goes on to deny", strict, flow(other, denied("not_allowed")), false, "", ""},
		{"it is replaced by its name", open, flow(other, denied("not_allowed")), false, NewlyAllowed, "allowed by policy shop/api"},
		{"and goes with all others", strict, flow(other, denied("not_allowed")), true, NewlyAllowed, "allowed: no ALLOW policy covers the workload"},
		{"a client that skipped", open, flow(outside, denied("client_skips_port")), false, NewlyAllowed, "allowed by policy shop/api"},
		{"requests that were not read", paths, flow(), false, Untold, unread},
		{"requests that were never sent, as it was denied", paths, flow(denied("denied")), false, Untold, unread},
		{"a client that was revoked, by an object that is not there", strict, flow(by("tacit-system/revoked_identity_web")), false, Untold,
			"the mesh's objects make no policy tacit-system/revoked_identity_web, which denied it"},
		{"a revocation that candidates do not replace", strict, flow(by("tacit-system/revoked_identity_web")), true, Untold,
			"the mesh's objects make no policy tacit-system/revoked_identity_web, which denied it"},
		{"a revocation that is there", revoked, flow(by("tacit-system/revoked_identity_web")), false, "", ""},
		{"a policy that is not there", strict, flow(by("shop/away")), false, Untold, "the mesh's objects make no policy shop/away, which denied it"},
		{"a policy that goes with all others", strict, flow(by("shop/away")), true, NewlyAllowed, "allowed: no ALLOW policy covers the workload"},
		{"STRICT that there is no more", open, flow(outside, by("tacit-system/istio_converted_static_strict")), false, NewlyAllowed, "allowed by policy shop/api"},
		{"a port that they are not about", paths, flow(func(f *flows.Flow) { f.Destination.Address = netip.MustParseAddrPort("198.18.2.1:9090") }), false, "", ""},
		{"a request that is denied", paths, flow(get("/admin/users")), false, NewlyDenied, "denied by policy shop/no-admin (matched: ports)"},
		{"a request that is not", paths, flow(get("/users")), false, "", ""},
		{"a path that is not whole", paths, flow(get("/user" + flows.Cut)), false, Untold, "its path or host was too long to be recorded"},
		{"headers", headers, flow(get("/users")), false, Untold, "policy shop/headers is about headers, tokens or clients behind proxies, which are not recorded"},
		{"a server that there is no more", strict, flow(func(f *flows.Flow) { f.Destination.Pod = "api-2" }), false, Untold, "the server is not among the objects of the mesh"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mesh, _ := Mesh(build.Settings{}, read(t, objects), read(t, test.candidate), test.instead)
			got := Run(mesh, []flows.Flow{test.flow}, test.instead)
			if test.change == "" {
				if got.Replayed != 1 || got.Unchanged != 1 || len(got.Rows) != 0 {
					t.Errorf("%+v, want no change", got)
				}
				return
			}
			if got.Count(test.change) != 1 || got.Rows[0].Why != test.why {
				t.Errorf("%+v, want %s: %s", got, test.change, test.why)
			}
		})
	}
}

const custom = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: CUSTOM
  provider: {name: authz}
  rules: [{to: [{operation: {ports: ["8080"]}}]}]
`

// What an external provider is asked about nobody can tell. It is denied only
// where it is known that there is no such provider.
func TestCustom(t *testing.T) {
	asked := "the provider of policy shop/ask decides"
	known := map[string]*model.Provider{"authz": {Name: "authz"}}
	for _, test := range []struct {
		name      string
		providers map[string]*model.Provider
		flow      flows.Flow
		change    Change
		why       string
		remarks   int
	}{
		{"without the configuration of the mesh", nil, flow(get("/")), Untold, asked, 1},
		{"a provider that there is", known, flow(get("/")), Untold, asked, 0},
		{"requests that were not read", known, flow(), Untold, "a policy looks into its requests, which were not read when it was recorded", 0},
		{"that has denied", known, flow(get("/"), denied("denied")), Untold, asked, 0},
		{"a provider that there is not", map[string]*model.Provider{}, flow(), NewlyDenied, "denied by policy shop/ask (matched: ports)", 1},
		{"a port that it is not asked about", nil, flow(func(f *flows.Flow) { f.Destination.Address = netip.MustParseAddrPort("198.18.2.1:9090") }), "", "", 1},
		{"who is denied before", nil, flow(other, denied("not_allowed")), "", "", 1},
	} {
		mesh, remarks := Mesh(build.Settings{Providers: test.providers}, read(t, objects), read(t, custom), false)
		got := Run(mesh, []flows.Flow{test.flow}, false)
		if len(remarks) != test.remarks {
			t.Errorf("%s: remarks %q", test.name, remarks)
		}
		if test.change == "" && got.Unchanged != 1 || test.change != "" && (got.Count(test.change) != 1 || got.Rows[0].Why != test.why) {
			t.Errorf("%s: %+v, want %s: %s", test.name, got, test.change, test.why)
		}
	}
}

// A server is known by its name and address, in whatever network it is.
func TestNetworks(t *testing.T) {
	mesh, _ := Mesh(build.Settings{}, read(t, objects), read(t, strict), false)
	var moved []*model.Workload
	for _, w := range mesh.Workloads() {
		other := *w
		other.Network = "far"
		moved = append(moved, &other)
	}
	got := Run(mesh.Apply(model.Update{Workloads: moved}), []flows.Flow{flow(), flow(outside)}, false)
	if got.Unchanged != 1 || got.Count(NewlyDenied) != 1 {
		t.Errorf("%+v, want one unchanged and one newly denied", got)
	}
}

// What policies did not decide is not replayed; what is alike is one row, with
// as many flows as the records stand for; denials come first.
func TestRows(t *testing.T) {
	mesh, _ := Mesh(build.Settings{}, read(t, objects), read(t, strict+"---"+open), false)
	got := Run(mesh, []flows.Flow{
		flow(func(f *flows.Flow) { f.Direction = "outbound" }),
		flow(outside, func(f *flows.Flow) { f.Outcome = "failed" }),
		flow(outside, func(f *flows.Flow) { f.Kind = "opened" }),
		flow(other, denied("rate_limited")),
		flow(),
		flow(other, denied("not_allowed")),
		flow(outside, func(f *flows.Flow) { f.Weight = 20 }),
		flow(outside, func(f *flows.Flow) { f.ID = "2"; f.Source.Address = netip.MustParseAddrPort("203.0.113.9:50000") }),
	}, false)
	party := func(namespace, name string) flows.Party { return flows.Party{Namespace: namespace, Name: name} }
	want := Result{Replayed: 23, Unchanged: 1, Rows: []Row{
		{Change: NewlyDenied, Source: party("", "203.0.113.9"), Destination: party("shop", "api"), Port: 8080, Flows: 21, ID: "2"},
		{Change: NewlyAllowed, Source: party("shop", "job"), Identity: "spiffe://cluster.local/ns/shop/sa/job", Destination: party("shop", "api"), Port: 8080, Flows: 1, ID: "1"},
	}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Row{}, "Why", "Policy")); diff != "" {
		t.Error(diff)
	}
}
