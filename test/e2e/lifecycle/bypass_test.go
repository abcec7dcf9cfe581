package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/e2e"
)

// tacitBypass runs "tacit bypass" on the manifests of the mesh.
func tacitBypass(t *testing.T, m *e2e.Mesh, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(m.Context(), m.Executable("tacit"), append(append([]string{"bypass"}, args...), "--from="+m.Manifests())...)
	cmd.Env = append(os.Environ(), "SUDO_USER=alice")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

const (
	pair = "mesh/server2" // who is bypassed, under STRICT itself
	// strictPods are the pair and the clients, to whom nobody comes in clear
	// but for a bypass.
	strictPods = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: pair, namespace: mesh}
spec: {selector: {matchLabels: {app: pair}}, mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: clients, namespace: mesh}
spec: {selector: {matchLabels: {app: client}}, mtls: {mode: STRICT}}
`
	denyPair = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: mesh}
spec: {selector: {matchLabels: {app: pair}}, action: DENY, rules: [{}]}
`
)

// A bypass begins and ends under load: nothing is refused or cut, what lives
// goes on as it began, new connections are plain and then mutual TLS again. In
// between restart who might forget it.
func TestBypass(t *testing.T) {
	m := e2e.Start(t, strictPods)
	serveEverywhere(m)
	l := startLoad(t, m)
	before := openTrio(t, m, "mesh/client", pair)
	before.speak(t)

	tacitBypass(t, m, pair, "--for=1h", "--reason=a drill")
	awaitSecurity(t, m, "b", "mesh/server", pair, 9100, "plain").abort()
	awaitSecurity(t, m, "a", "mesh/client", pair, 9100, "plain").abort()
	during := openTrio(t, m, "mesh/client", pair)
	check := func() {
		t.Helper()
		l.newEpoch()
		l.awaitServed(3)
		before.speak(t)
		during.speak(t)
	}
	check()
	m.Eventually("a STRICT peer denies it and says why", func() error {
		if _, err := m.Call(pair, "198.18.1.10:8080"); err == nil {
			return errors.New("it is served")
		}
		reasons := ""
		for _, c := range m.Connections("a", "denied", pair, "") {
			reasons += c.Reason + "\n"
		}
		if want := "its client is under bypass mesh/bypass-mesh-server2-"; !strings.Contains(reasons, want) {
			return fmt.Errorf("the reasons are %q, want %q", reasons, want)
		}
		return nil
	})
	var e admin.Explanation
	if err := m.Admin("a", "/explain?from="+pair+"&to=mesh/client:8080", &e); err != nil || !strings.Contains(e.Change, "tacit bypass end mesh/bypass-") {
		t.Errorf("explained: %+v, %v", e, err)
	}
	if out := tacitBypass(t, m, "list"); !contains(out, pair, "bypassed, ends in 59m", "alice", "a drill") {
		t.Errorf("list:\n%s", out)
	}

	if err := m.Node("b").Agent().Stop(m.Context()); err != nil {
		t.Fatal(err)
	}
	startAgent(t, m, "b")
	if err := errors.Join(m.Control().Kill(), m.StartControl(m.Context())); err != nil {
		t.Fatal(err)
	}
	check()
	awaitSecurity(t, m, "b", "mesh/server", pair, 9100, "plain").abort()

	mark := m.Node("b").Agent().Mark()
	tacitBypass(t, m, "end", pair)
	logs(t, m, m.Node("b").Agent(), mark, "pod captured", pair)
	awaitSecurity(t, m, "a", "mesh/client", pair, 9100, "mtls").abort()
	m.Eventually("STRICT is in force again", func() error {
		if _, err := m.Call("outside/plain", "198.18.2.11:8080"); err == nil {
			return errors.New("a caller in clear is served")
		}
		return nil
	})
	check()
	for _, x := range []trio{before, during} {
		x.finish(t)
		for _, s := range x {
			s.abort()
		}
	}
}

// A bypass of policies alone keeps mutual TLS, lets through what is denied, and
// tells of it. At its end what it has let in goes on.
func TestBypassOfPolicies(t *testing.T) {
	m := e2e.Start(t, denyPair)
	m.Serve(pair, ":8080", e2e.Echo)
	denied := func() error {
		if _, err := m.Call("mesh/client", "198.18.2.11:8080"); err == nil {
			return errors.New("it is served")
		}
		return nil
	}
	m.Eventually("denied at first", denied)
	mark := m.Node("b").Proxy().Mark()
	tacitBypass(t, m, "mesh", "--policy-only", "--reason=which policy is it")
	m.Eventually("let through", func() error {
		_, err := m.Call("mesh/client", "198.18.2.11:8080")
		return err
	})
	s := awaitSecurity(t, m, "a", "mesh/client", pair, 9000, "mtls")
	tacitBypass(t, m, "end", "mesh")
	m.Eventually("denied again, once it has ended", denied)
	for _, end := range []int{clientEnd, serverEnd} {
		if err := s.speak(end, 5000); err != nil {
			t.Errorf("what the bypass has let in: %v", err)
		}
	}
	if err := s.finish(); err != nil {
		t.Error(err)
	}
	s.abort()
	logs(t, m, m.Node("b").Proxy(), mark, `"reason":"bypassed"`, `"dry_run":"mesh/nobody"`)
}

// Under Istio's CNI agent capture is that one's to end. A bypass has policies
// deny nothing there as well, and peers use plain TCP; what the pod itself opens
// goes on to be captured, with its identity, so that STRICT peers take it.
func TestBypassUnderIstio(t *testing.T) {
	m, _ := underIstio(t)
	m.MustApply(strictPods + denyPair)
	serveEverywhere(m)
	denied := func() error {
		if _, err := m.Call("mesh/client", "198.18.2.11:8080"); err == nil {
			return errors.New("it is served")
		}
		return nil
	}
	m.Eventually("denied at first", denied)
	tacitBypass(t, m, pair, "--for=1h", "--reason=a drill")
	m.Eventually("let through", func() error {
		_, err := m.Call("mesh/client", "198.18.2.11:8080")
		return err
	})
	s := awaitSecurity(t, m, "a", "mesh/client", pair, 9000, "plain")
	awaitSecurity(t, m, "b", pair, "mesh/client", 9000, "mtls").abort()
	tacitBypass(t, m, "end", pair)
	m.Eventually("denied again, once it has ended", denied)
	for _, end := range []int{clientEnd, serverEnd} {
		if err := s.speak(end, 5000); err != nil {
			t.Errorf("what the bypass has let in: %v", err)
		}
	}
	s.abort()
}
