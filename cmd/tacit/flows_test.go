package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
)

// flowProxy is a proxy's admin server with flows.
func flowProxy(t *testing.T, node string) (socket string, log *flows.Log) {
	t.Helper()
	log = flows.New(100, time.Now())
	return serveAdmin(t, admin.Server{Node: node, Snapshot: mesh, Flows: log}), log
}

func denial(id string) *flows.Event {
	a, b := mesh().Workload("Kubernetes//Pod/shop/a"), mesh().Workload("Kubernetes//Pod/shop/b")
	return &flows.Event{
		Kind: flows.Ended, ID: id, Inbound: true, Security: "mtls", Outcome: "denied", Began: time.Now(), Time: time.Now(),
		Source:      flows.End{Addr: netip.MustParseAddrPort("198.18.1.1:40000"), Workload: a, Identity: a.Identity()},
		Destination: flows.End{Addr: netip.MustParseAddrPort("198.18.1.2:80"), Workload: b, Identity: b.Identity()},
		Policy:      "shop/strict", Reason: "denied", Err: errors.New("denied by policy shop/strict (matched: \x1b[2Jports)"),
	}
}

func TestFlowsCommand(t *testing.T) {
	socket, log := flowProxy(t, "node-a")
	log.Add(denial("4bf9"))
	ok := denial("1234")
	ok.Outcome, ok.Err = "ok", nil
	log.Add(ok)
	for args, want := range map[string]string{
		"flows":                                   "denied by policy shop/strict (matched: \uFFFD[2Jports); tacit explain 4bf9",
		"flows shop/a --outcome denied":           "shop/b:80",
		"flows --outcome failed":                  "No such flows.",
		"flows --port 80 -o json":                 `"partial":false,"missing":[]`,
		"flows --identity ns/shop/sa/a":           "ended",
		"flows --connections --direction inbound": "mtls",
		"coverage":                                "1 mTLS, 0 plain, 0 skipped, 0 to outside the mesh; 1 denied",
		"coverage --pairs":                        "shop/a  shop/b       mtls",
		"coverage -o json":                        `"policyCoverage":0,`,
		"coverage -o yaml":                        "policyCoverage: 0\n",
		"flows --outcome denied -o yaml":          "  outcome: denied\n",
		"dump -o yaml":                            "  name: a\n",
		"coverage -o prometheus":                  "tacit_coverage_policy_ratio 0\n",
	} {
		code, out, errOut := tacit(append(strings.Fields(args), "--socket", socket)...)
		if code != 0 || !strings.Contains(out, want) || strings.Contains(out, "\x1b") {
			t.Errorf("%s: exit %d, %q, %q; want %q", args, code, out, errOut, want)
		}
	}
	for args, want := range map[string]string{
		"flows shop/aa":                  "tacit: no pod or owner of pods shop/aa in the mesh; did you mean shop/a, shop/, shop/b?\n",
		"flows --outcome good":           `outcome "good": want ok, denied`,
		"flows --requests --connections": "give one or the other",
		"coverage -o toml":               `output "toml": want text, json, yaml, prometheus or wide`,
		"tap --from a":                   "want NAMESPACE/POD",
	} {
		if code, _, errOut := tacit(append(strings.Fields(args), "--socket", socket)...); code != 1 || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d, %q; want %q", args, code, errOut, want)
		}
	}
}

// A proxy that keeps no flows has counted nothing, which is not that everything
// was mutual TLS.
func TestProxyWithoutFlows(t *testing.T) {
	socket := serveAdmin(t, admin.Server{Node: "node-a", Snapshot: mesh})
	for _, args := range []string{"coverage", "coverage -o json", "coverage -o prometheus", "flows", "flows -o json", "tap"} {
		code, out, errOut := tacit(append(strings.Fields(args), "--socket", socket)...)
		if code == 0 || !strings.Contains(errOut, "it runs with --flows 0") || strings.Contains(out, "100") || strings.Contains(out, "mtls") {
			t.Errorf("%s: exit %d, %q, %q", args, code, out, errOut)
		}
	}
}

// tapping runs tap until it has shown as many flows, and makes those once it
// watches.
func tapping(t *testing.T, log *flows.Log, happens func(), args ...string) (code int, out, errOut string) {
	t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for log.HasTaps() { // the one before has not been noticed to be gone yet
		<-look.C
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, out, errOut = tacit(append([]string{"tap"}, args...)...)
	}()
	for !log.HasTaps() {
		select {
		case <-look.C:
		case <-ended:
			t.Fatalf("tap ends: exit %d, %q, %q", code, out, errOut)
		}
	}
	happens()
	<-ended
	return code, out, errOut
}

func TestTapCommand(t *testing.T) {
	socket, log := flowProxy(t, "node-a")
	happens := func() {
		opened := denial("0000")
		opened.Kind, opened.Outcome, opened.Err = flows.Opened, "ok", nil
		log.Add(opened)
		log.Add(denial("4bf9"))
	}
	code, out, errOut := tapping(t, log, happens, "--socket", socket, "--count", "2")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != 0 || len(lines) != 3 || !strings.Contains(lines[0], "SOURCE") ||
		!strings.Contains(lines[1], "opened") || !strings.Contains(lines[2], "denied by policy shop/strict") || !strings.Contains(errOut, "watching node node-a") {
		t.Errorf("exit %d, %q, %q", code, out, errOut)
	}
	code, out, _ = tapping(t, log, happens, "shop/b", "--socket", socket, "--count", "1", "--outcome", "denied", "-o", "json")
	var flow flows.Flow
	if err := json.Unmarshal([]byte(out), &flow); err != nil || code != 0 || flow.ID != "4bf9" || flow.Node != "node-a" || flow.Policy != "shop/strict" {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
	code, out, _ = tapping(t, log, happens, "--socket", socket, "--count", "2", "-o", "yaml")
	var list []flows.Flow
	if err := yaml.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list) != 2 || list[1].Policy != "shop/strict" {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
	// A proxy that goes is told of, with what to do.
	code, _, errOut = tacit("tap", "--socket", filepath.Join(t.TempDir(), "none"))
	if code != 1 || !strings.Contains(errOut, "name its socket with --socket") {
		t.Errorf("exit %d, %q", code, errOut)
	}
	if code, _, errOut = tacit("tap", "--for", "10ms", "--socket", socket); code != 0 {
		t.Errorf("--for: exit %d, %q", code, errOut)
	}
}
