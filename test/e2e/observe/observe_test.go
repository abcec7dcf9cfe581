// Package observe tests what the mesh tells of live traffic, with real
// programs: that tap, flows and coverage agree on who talked to whom.
package observe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/cmd/tacit/replay"
	"github.com/tacit-mesh/tacit/proxy/flows"
	"github.com/tacit-mesh/tacit/sight/traffic"
	"github.com/tacit-mesh/tacit/test/e2e"
)

func TestMain(m *testing.M) { e2e.Main(m) }

const (
	nginx   = "http://198.18.2.40:8080"
	program = "/run/tacit/bin/tacit"
	covered = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: mesh}
spec:
  action: DENY
  selector: {matchLabels: {app: nginx}}
  rules:
  - to: [{operation: {paths: ["/secret*"]}}]
`
)

// tacit runs the command on a node and returns what it says.
func tacit(t *testing.T, m *e2e.Mesh, node string, args ...string) string {
	t.Helper()
	cmd := m.Node(node).Command(m.Context(), program, append(args, "--socket", m.Node(node).AdminSocket())...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tacit %v: %v: %s", args, err, errOut.String())
	}
	return string(out)
}

// tap watches a node from now on. The flows come as JSON.
func tap(t *testing.T, m *e2e.Mesh, node string, args ...string) *json.Decoder {
	t.Helper()
	// It is interrupted, as a user would, and not killed with the test's context.
	cmd := m.Node(node).Command(context.Background(), program, append([]string{"tap", "-o", "json", "--socket", m.Node(node).AdminSocket()}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errOut, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("tap ends with %v", err)
		}
	})
	said := bufio.NewReader(errOut)
	if line, err := said.ReadString('\n'); !strings.Contains(line, "watching node") {
		t.Errorf("tap says %q, %v", line, err)
	}
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, said)
	}()
	return json.NewDecoder(out)
}

// next is the next flow that fits.
func next(t *testing.T, tapped *json.Decoder, what string, fits func(*flows.Flow) bool) flows.Flow {
	t.Helper()
	for {
		var f flows.Flow
		if err := tapped.Decode(&f); err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if fits(&f) {
			return f
		}
	}
}

func curl(t *testing.T, m *e2e.Mesh, pod, path, status string) {
	t.Helper()
	out, err := m.Pod(pod).Command(m.Context(), "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", nginx+path).CombinedOutput()
	if err != nil || string(out) != status {
		t.Fatalf("curl %s from %s: %q, %v, want %s", path, pod, out, err, status)
	}
}

// A request and its connection are the same in tap, flows and coverage, on both
// nodes, and a denial names its policy.
func TestSameEverywhere(t *testing.T) {
	manifest, err := os.ReadFile("testdata/nginx.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m := e2e.Start(t, covered, string(manifest))
	if err := m.StartApps(m.Context()); err != nil {
		t.Fatal(err)
	}
	server := tap(t, m, "b", "mesh/nginx")
	client := tap(t, m, "a", "--from", "mesh/client", "--connections")

	curl(t, m, "mesh/client", "/hello", "200")
	opened := next(t, server, "the opening", func(f *flows.Flow) bool { return f.Kind == "opened" })
	request := next(t, server, "the request", func(f *flows.Flow) bool { return f.Kind == "request" })
	ended := next(t, server, "the end", func(f *flows.Flow) bool { return f.Kind == "ended" })
	if opened.ID == "" || opened.ID != request.ID || opened.ID != ended.ID {
		t.Errorf("ids %q, %q, %q of one connection", opened.ID, request.ID, ended.ID)
	}
	if h := request.HTTP; h == nil || h.Method != "GET" || h.Path != "/hello" || h.Status != 200 || request.Outcome != "ok" {
		t.Errorf("the request: %+v", request)
	}
	if ended.Source.Pod != "client" || ended.Source.Identity != "spiffe://cluster.local/ns/mesh/sa/client" || ended.Destination.Pod != "nginx" ||
		ended.Security != "mtls" || ended.Outcome != "ok" || ended.Received == 0 {
		t.Errorf("the end: %+v", ended)
	}
	out := next(t, client, "the client's side", func(f *flows.Flow) bool { return f.Kind == "ended" })
	if out.ID != ended.ID || out.Direction != "outbound" || out.Destination.Pod != "nginx" || out.Security != "mtls" {
		t.Errorf("the client's side: %+v", out)
	}

	curl(t, m, "mesh/client", "/secret/a", "403")
	denial := next(t, server, "the denial", func(f *flows.Flow) bool { return f.Outcome == "denied" })
	if denial.Policy != "mesh/no-secrets" || denial.Attribute != "paths" || denial.HTTP == nil || denial.HTTP.Path != "/secret/a" {
		t.Errorf("the denial: %+v", denial)
	}
	curl(t, m, "outside/plain", "/hello", "200")
	next(t, server, "the end in clear", func(f *flows.Flow) bool { return f.Kind == "ended" && f.Why == flows.WhyClientNotInMesh })

	remembered(t, m, ended, request, denial, out)
	coverage(t, m)
	replayed(t, m)
	if text := tacit(t, m, "b", "flows", "--outcome", "denied"); !strings.Contains(text, "denied by policy mesh/no-secrets (matched: paths); tacit explain "+denial.ID) {
		t.Errorf("tacit flows says:\n%s", text)
	}
	cmd := m.Node("b").Command(m.Context(), program, "flows", "mesh/ngnix", "--socket", m.Node("b").AdminSocket())
	if text, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(text), "did you mean mesh/nginx?") {
		t.Errorf("of a pod that there is not: %v, %s", err, text)
	}
}

// replayed looks ahead to STRICT: it would cut off the client in clear, alone.
func replayed(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	candidate := filepath.Join(t.TempDir(), "strict.yaml")
	const strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: mesh}\nspec: {mtls: {mode: STRICT}}\n"
	if err := os.WriteFile(candidate, []byte(strict), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := m.Node("b").Command(m.Context(), program, "replay", "--mesh", m.Manifests(), "--policies", candidate, "-o", "json", "--socket", m.Node("b").AdminSocket()).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("replay ends with %v, want exit code 3: something would be denied", err)
	}
	var answer replay.Result
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatalf("replay: %v: %s", err, out)
	}
	for _, row := range answer.Rows {
		if row.Change != replay.NewlyDenied || row.Source != (flows.Party{Namespace: "outside", Name: "plain"}) || row.Destination != (flows.Party{Namespace: "mesh", Name: "nginx"}) {
			t.Errorf("STRICT would change %+v", row)
		}
	}
	// Its connection and its request; those of the client with an identity stay.
	if answer.Count(replay.NewlyDenied) != 2 || answer.Unchanged != 4 {
		t.Errorf("replayed: %+v", answer)
	}
}

// remembered compares what flows says with what was tapped.
func remembered(t *testing.T, m *e2e.Mesh, ended, request, denial, out flows.Flow) {
	t.Helper()
	for node, tapped := range map[string][]flows.Flow{"b": {ended, request, denial}, "a": {out}} {
		var answer struct{ Flows []flows.Flow }
		if err := json.Unmarshal([]byte(tacit(t, m, node, "flows", "--since", "1h", "-o", "json")), &answer); err != nil {
			t.Fatal(err)
		}
		for _, want := range tapped {
			found := false
			for _, f := range answer.Flows {
				found = found || f.ID == want.ID && f.Kind == want.Kind && f.Outcome == want.Outcome && f.Policy == want.Policy && f.Time.Equal(want.Time) && f.Received == want.Received
			}
			if !found {
				t.Errorf("node %s does not remember %+v among %+v", node, want, answer.Flows)
			}
		}
	}
}

// coverage checks the counts of node b, where the server is.
func coverage(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	var sum traffic.Coverage
	if err := json.Unmarshal([]byte(tacit(t, m, "b", "coverage", "-o", "json")), &sum); err != nil {
		t.Fatal(err)
	}
	party := func(namespace, name string) flows.Party { return flows.Party{Namespace: namespace, Name: name} }
	var carried, requests, denied, plain uint64
	for i := range sum.Pairs {
		p := &sum.Pairs[i]
		if p.Destination != party("mesh", "nginx") {
			continue
		}
		switch {
		case p.Source == party("mesh", "client") && p.Security == "mtls":
			carried, requests, denied = p.Carried(), p.Requests, p.Denied
		case p.Source == party("outside", "plain") && p.Why == flows.WhyClientNotInMesh:
			plain = p.Carried()
		}
	}
	if carried != 2 || requests != 1 || denied != 1 || plain != 1 {
		t.Errorf("%d connections over mTLS with %d requests, %d denied, %d in clear; want 2, 1, 1, 1: %+v", carried, requests, denied, plain, sum.Pairs)
	}
	if sum.All.MTLS != 2 || sum.All.Plain != 1 || sum.Mesh.Share < 0.66 || sum.Mesh.Share > 0.67 {
		t.Errorf("shares %+v, %+v", sum.All, sum.Mesh)
	}
	without := map[flows.Party]bool{}
	for _, p := range sum.WithoutPolicy {
		without[p] = true
	}
	if without[party("mesh", "nginx")] || !without[party("mesh", "client")] || len(sum.UnusedPolicies) != 0 {
		t.Errorf("without a policy: %v; unused: %v", sum.WithoutPolicy, sum.UnusedPolicies)
	}
	if text := tacit(t, m, "b", "coverage", "-o", "prometheus"); !strings.Contains(text, `tacit_coverage_mtls_ratio{scope="all"} 0.66`) {
		t.Errorf("metrics:\n%s", text)
	}
}
