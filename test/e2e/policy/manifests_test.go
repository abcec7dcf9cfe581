package policy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// A manifest that cannot be read is an error with file, line and field, in the
// log and in the status; its last good version stays in force until it is
// mended.
func TestBrokenManifest(t *testing.T) {
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	apply(t, m, authorization("guard", deny("serviceAccounts: [near]")))
	mark := m.Control().Mark()

	file := filepath.Join(m.Manifests(), "authorizationpolicy-mesh-guard.yaml")
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	broken := "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: guard, namespace: mesh}\nspec:\n  action: DENY\n  ruels: [{}]\n"
	if err := os.WriteFile(file, []byte(broken), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Eventually("the error is in the status", func() error {
		var s controlStatus
		data, err := os.ReadFile(m.StatusFile())
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err != nil {
			return err
		}
		for _, e := range s.ManifestErrors {
			if filepath.Base(e.File) == filepath.Base(file) && e.Line == 6 && e.Field == "spec.ruels" {
				return nil
			}
		}
		return fmt.Errorf("the errors are %+v", s.ManifestErrors)
	})
	if _, err := m.Control().WaitLog(m.Context(), mark, func(line string) bool {
		return strings.Contains(line, filepath.Base(file)+":6: spec.ruels")
	}); err != nil {
		t.Error(err)
	}
	settle(t, m) // others' changes are taken meanwhile
	if _, err := m.Call("mesh/near", server); !denied(err) {
		t.Errorf("what the last good version denies: %v", err)
	}
	if _, err := m.Call("mesh/client", server); err != nil {
		t.Errorf("what it does not deny: %v", err)
	}

	apply(t, m, authorization("guard", deny("serviceAccounts: [client]")))
	if _, err := m.Call("mesh/near", server); err != nil {
		t.Errorf("what the mended version does not deny: %v", err)
	}
	if _, err := m.Call("mesh/client", server); !denied(err) {
		t.Errorf("what the mended version denies: %v", err)
	}
}

// A policy that covers a port which its pods skip is not enforced there, and
// its status says on which port of which pods; the metrics count it.
func TestPolicyOnSkippedPort(t *testing.T) {
	const metrics = "198.18.0.1:15014"
	m := e2e.StartWith(t, world.Config{ControlArgs: []string{"--metrics", metrics}},
		authorization("nobody", "{action: ALLOW}"), peerAuthentication("mesh", "default", "{mtls: {mode: STRICT}}"))
	for _, kind := range [][2]string{{"AuthorizationPolicy", "mesh/nobody"}, {"PeerAuthentication", "mesh/default"}} {
		statusOf(t, m, kind[0], kind[1], func(s policyStatus) bool { return s.Enforced && len(s.Messages) == 0 })
	}
	mark := m.Control().Mark()
	m.MustApply(pod("server2", `{tacit.mesh/redirection: enabled, tacit.mesh/skip-inbound-ports: "8080,9000-9100"}`, "{app: pair}"))
	m.Serve("mesh/server2", ":8080", e2e.Echo)
	settle(t, m)
	want := "not enforced on port 8080,9000-9100, which bypasses the mesh, of workloads: Kubernetes//Pod/mesh/server2"
	for _, kind := range [][2]string{{"AuthorizationPolicy", "mesh/nobody"}, {"PeerAuthentication", "mesh/default"}} {
		s := statusOf(t, m, kind[0], kind[1], func(s policyStatus) bool { return len(s.Messages) > 0 })
		if !s.Enforced || len(s.Messages) != 1 || s.Messages[0] != want {
			t.Errorf("status of %s: %+v", kind, s)
		}
		if _, err := m.Control().WaitLog(m.Context(), mark, func(line string) bool {
			return strings.Contains(line, kind[0]+" "+kind[1]+": enforced in part: "+want)
		}); err != nil {
			t.Error(err)
		}
	}
	response, err := m.Node("a").HTTP().Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if text, err := io.ReadAll(response.Body); err != nil || !strings.Contains(string(text), "\ntacitd_policies_not_enforced 2\n") {
		t.Errorf("metrics (%v):\n%s", err, text)
	}
	m.Eventually("the port is skipped", func() error {
		_, err := m.Call("outside/plain", net.JoinHostPort("198.18.2.11", "8080"))
		return err
	})
	if _, err := m.Call("outside/plain", server); !denied(err) {
		t.Errorf("a pod that skips nothing: %v, want a reset", err)
	}
	text, code := explain(t, m, "b", "--from", "outside/plain", "--to", "mesh/server2:8080")
	if code != 0 || !strings.Contains(text, "mesh/nobody covers the pod, but is not enforced on port 8080") {
		t.Errorf("explained (exit code %d):\n%s", code, text)
	}
}
