package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers on a socket as a proxy would, by path and query.
func serve(t *testing.T, answers map[string]any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.RequestURI()]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = map[string]string{"error": "asked for " + r.URL.RequestURI()}
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})}
	ended := make(chan struct{})
	go func() { _ = server.Serve(listener); close(ended) }()
	t.Cleanup(func() { server.Close(); <-ended })
	return path
}

func tacit(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(context.Background(), "tacit", args, &o, &e)
	return code, o.String(), e.String()
}

// As a plugin of kubectl it goes by the name that it was called by, in its help
// and where it says what is wrong.
func TestPluginOfKubectl(t *testing.T) {
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"/usr/local/bin/kubectl-tacit", "  kubectl tacit [command]\n", []string{"--help"}},
		{"kubectl-tacit", "(see kubectl tacit flows --help)", []string{"flows", "--nothing"}},
		{"/usr/local/bin/tacit", "  tacit [command]\n", []string{"--help"}},
	} {
		var out bytes.Buffer
		run(t.Context(), test.name, test.args, &out, &out)
		if !strings.Contains(out.String(), test.want) {
			t.Errorf("%s %v: %s; want %q", test.name, test.args, out.String(), test.want)
		}
	}
}

func TestCommands(t *testing.T) {
	explain := func(o admin.Outcome) admin.Explanation {
		return admin.Explanation{Outcome: o, Summary: "Because.", Steps: []admin.Step{{Stage: "source", Mark: "ok", Text: "Here."}}}
	}
	socket := serve(t, map[string]any{
		"/status":      admin.Status{Node: "node-a", Generation: 7},
		"/dump":        map[string]int{"generation": 7},
		"/connections": map[string]any{"connections": []admin.Connection{{ID: "live"}}},
		"/connections?denied=&from=shop%2Fa&to=198.18.2.1": map[string]any{"connections": []admin.Connection{{ID: "no"}}},
		"/connections?ended=":                              map[string]any{"connections": []admin.Connection{}},
		"/certificates":                                    map[string]any{"node": "node-a", "certificates": []admin.Certificate{{Identity: "spiffe://td/ns/shop/sa/a", Error: "no entry"}}},
		"/explain?from=shop%2Fa&to=shop%2Fb%3A80":          explain(admin.Allowed),
		"/explain?from=shop%2Fa&to=shop%2Fb%3A81":          explain(admin.Denied),
		"/explain?from=shop%2Fa&to=shop%2Fb%3A82":          explain(admin.Unchecked),
		"/explain?from=shop%2Fa&to=shop%2Fb%3A83":          explain(admin.Depends),
		"/explain?from=shop%2Fa&to=shop%2Fb%3A84":          "no object",
		"/explain?id=4bf9":                                 explain(admin.Denied),
	})
	tests := []struct {
		args string
		code int
		out  string // is contained in standard output
		err  string // is contained in standard error; empty: nothing is said there
	}{
		{args: "status", out: "node         node-a\n"},
		{args: "status -o json", out: `"generation":7`},
		{args: "dump", out: `{"generation":7}`},
		{args: "dump -o json", out: `{"generation":7}`},
		{args: "connections", out: "live"},
		{args: "connections --denied --from shop/a --to 198.18.2.1", out: "no"},
		{args: "connections --ended", out: "No such connections."},
		{args: "connections --ended -o json", out: `{"connections":[]}`},
		{args: "connections --to nobody", code: 1, err: "tacit: asked for /connections?to=nobody\n"},
		{args: "certs", out: "none yet: no entry"},
		{args: "certs -o json", out: `"identity":"spiffe://td/ns/shop/sa/a"`},
		{args: "explain --from shop/a --to shop/b:80", out: "ALLOWED  Because."},
		{args: "explain --from shop/a --to shop/b:81", code: 3, out: "DENIED  Because."},
		{args: "explain --from shop/a --to shop/b:82", out: "UNCHECKED  Because."},
		{args: "explain --from shop/a --to shop/b:83", code: 3, out: "DEPENDS  Because."},
		{args: "explain --from shop/a --to shop/b:84", code: 1, err: "answer of the proxy"},
		{args: "explain 4bf9", code: 3, out: "DENIED  Because."},
		{args: "explain 4bf9 -o json", code: 3, out: `"outcome":"denied"`},
		{args: "explain", code: 1, err: "name either the id"},
		{args: "explain 4bf9 --from shop/a", code: 1, err: "name either the id"},
		{args: "explain --from shop/a", code: 1, err: "name either the id"},
		{args: "connections --ended -o yaml", out: "connections: []\n"},
		{args: "certs -o yaml", out: "identity: spiffe://td/ns/shop/sa/a\n"},
		{args: "explain 4bf9 -o yaml", code: 3, out: "outcome: denied\n"},
		{args: "status -o toml", code: 1, err: `output "toml": want text, json, yaml or wide`},
		{args: "status -o table", out: "node         node-a\n"},
		{args: "connections -o wide", out: "IDENTITY"},
		{args: "certs -o wide", out: "WHOLE SERIAL"},
		{args: "dump -o toml", code: 1, err: `output "toml": want text, json or yaml`},
		{args: "status now", code: 1, err: "unknown command"},
		{args: "frobnicate", code: 1, err: "unknown command"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			args := strings.Fields(tt.args)
			if args[0] != "frobnicate" {
				args = append(args, "--socket", socket)
			}
			code, out, errOut := tacit(args...)
			if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errOut, tt.err) || tt.err == "" && errOut != "" {
				t.Errorf("exit %d, output %q, errors %q; want %d, %q, %q", code, out, errOut, tt.code, tt.out, tt.err)
			}
			if strings.Contains(out, "\x1b") {
				t.Errorf("colours where there is no terminal: %q", out)
			}
		})
	}
}

func TestNoProxy(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	for socket, want := range map[string]string{
		filepath.Join(dir, "absent.sock"): "name its socket with --socket",
		dead:                              "The proxy is not running",
	} {
		if code, _, errOut := tacit("status", "--socket", socket); code != 1 || !strings.Contains(errOut, want) || !strings.Contains(errOut, socket) {
			t.Errorf("exit %d, %q; want %q", code, errOut, want)
		}
	}
	c := client{socket: "/x"}
	if got := c.advise(&os.PathError{Op: "connect", Err: syscall.EACCES}); !strings.Contains(got.Error(), "permission denied") {
		t.Errorf("permission: %v", got)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"status", "--help"}, {"connections", "--help"}, {"explain", "--help"}, {"dump", "--help"}} {
		if code, out, _ := tacit(args...); code != 0 || !strings.Contains(out, "Examples:") || !strings.Contains(out, "Usage:") {
			t.Errorf("%v: exit %d, %q", args, code, out)
		}
	}
	if code, out, _ := tacit("--version"); code != 0 || !strings.HasPrefix(out, "tacit ") {
		t.Errorf("--version: exit %d, %q", code, out)
	}
}

// serveAdmin runs a proxy's admin server until the test has ended.
func serveAdmin(t *testing.T, server admin.Server) (socket string) {
	t.Helper()
	server.Path = filepath.Join(t.TempDir(), "admin.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-look.C {
		code, _, errOut := tacit("status", "--socket", server.Path)
		if code == 0 {
			return server.Path
		}
		if time.Now().After(deadline) {
			t.Fatal(errOut)
		}
	}
}

// The program and a proxy's real admin server understand each other.
func TestAgainstServer(t *testing.T) {
	socket := serveAdmin(t, admin.Server{Node: "node-a", Snapshot: mesh, Live: func() []admin.Connection {
		return []admin.Connection{{ID: "4bf9", Direction: admin.Outbound, Source: admin.End{Workload: "shop/a"}}}
	}})
	for args, want := range map[string]string{
		"status":                               "generation 1: 2 workloads, 0 services, 0 policies",
		"connections --from shop/":             "4bf9  outbound",
		"connections --from other/":            "No such connections.",
		"explain --from shop/a --to shop/b:80": "ALLOWED  Pod shop/b, port 80: allowed",
		"dump":                                 `"uid":"Kubernetes//Pod/shop/a"`,
	} {
		code, out, errOut := tacit(append(strings.Fields(args), "--socket", socket)...)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit %d, %q, %q; want %q", args, code, out, errOut, want)
		}
	}
}

func mesh() *model.Snapshot {
	u := model.Update{AddressesComplete: true, PoliciesComplete: true}
	for name, ip := range map[string]string{"a": "198.18.1.1", "b": "198.18.1.2"} {
		u.Workloads = append(u.Workloads, &model.Workload{
			UID: "Kubernetes//Pod/shop/" + name, Name: name, Namespace: "shop", ServiceAccount: name, TrustDomain: model.DefaultTrustDomain,
			Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Protocol: model.ProtocolHBONE, Capacity: 1,
		})
	}
	return model.NewSnapshot().Apply(u)
}
