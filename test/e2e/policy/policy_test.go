// Package policy tests what the mesh allows and denies, with real traffic:
// which connections each policy lets through, what becomes of live ones when
// it changes, and that what is unknown, broken or away never opens anything.
package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

func TestMain(m *testing.M) { e2e.Main(m) }

const server = "198.18.2.10:8080"

// callers are the pods that call, with the addresses that others see.
var callers = map[string]string{
	"mesh/client": "198.18.1.10", "mesh/twin": "198.18.1.11", "mesh/near": "198.18.1.20", "outside/plain": "198.18.1.30",
}

func authorization(name, spec string) string {
	return object("AuthorizationPolicy", "mesh", name, spec)
}

func object(kind, namespace, name, spec string) string {
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", kind, name, namespace, spec)
}

// pods of testdata that tests change: node, account and address.
var pods = map[string][3]string{
	"client":  {"a", "client", "198.18.1.10"},
	"twin":    {"a", "client", "198.18.1.11"},
	"server2": {"b", "server", "198.18.2.11"},
	"server3": {"b", "server", "198.18.2.12"},
}

// pod is the manifest of one of them with other annotations and labels.
func pod(name, annotations, labels string) string {
	facts := pods[name]
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: mesh, labels: %s, annotations: %s}\n"+
		"spec: {nodeName: %s, serviceAccountName: %s, containers: [{name: app, image: none, ports: [{name: web, containerPort: 8080}]}]}\n"+
		"status: {podIPs: [{ip: '%s'}, {ip: '%s'}]}\n",
		name, labels, annotations, facts[0], facts[1], facts[2], ipv6(facts[2]))
}

// ipv6 is the second address of the pod with this first one.
func ipv6(v4 string) string {
	parts := strings.Split(v4, ".")
	return "fd00:7ac1:" + parts[2] + "::" + parts[3]
}

// settle returns when both nodes have everything that was applied or deleted
// before. The removal of a policy is the last that they are sent of a change.
func settle(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	const barrier = "outside/barrier"
	await := func(present bool) {
		t.Helper()
		for _, node := range []string{"a", "b"} {
			m.Eventually("node "+node+" has the change", func() error {
				if has := slices.Contains(policies(t, m, node), barrier); has != present {
					return fmt.Errorf("policy %s there: %v", barrier, has)
				}
				return nil
			})
		}
	}
	m.MustApply(object("AuthorizationPolicy", "outside", "barrier", "{action: DENY, selector: {matchLabels: {app: none}}}"))
	await(true)
	if err := m.Delete("AuthorizationPolicy", barrier); err != nil {
		t.Fatal(err)
	}
	await(false)
}

// policies are the keys of those that a node's proxy has.
func policies(t *testing.T, m *e2e.Mesh, node string) (keys []string) {
	t.Helper()
	var dump struct{ Policies []struct{ Key string } }
	if err := m.Admin(node, "/dump", &dump); err != nil {
		t.Fatal(err)
	}
	for _, p := range dump.Policies {
		keys = append(keys, p.Key)
	}
	return keys
}

// apply puts policies in force on both nodes, until the returned function
// takes them back.
func apply(t *testing.T, m *e2e.Mesh, objects ...string) (remove func()) {
	t.Helper()
	for _, yaml := range objects {
		m.MustApply(yaml)
	}
	settle(t, m)
	return func() {
		t.Helper()
		for _, yaml := range objects {
			var kind, name, namespace string
			for line := range strings.Lines(yaml) {
				_, _ = fmt.Sscanf(line, "kind: %s", &kind)
				if rest, ok := strings.CutPrefix(line, "metadata: {name: "); ok {
					rest, _, _ = strings.Cut(strings.TrimSpace(rest), "}")
					name, namespace, _ = strings.Cut(rest, ", namespace: ")
					namespace, _, _ = strings.Cut(namespace, ",")
				}
			}
			if err := m.Delete(kind, namespace+"/"+name); err != nil {
				t.Fatal(err)
			}
		}
		settle(t, m)
	}
}

// denied reports whether a call was reset, which the first system call after it
// tells: connect itself, write, shutdown or read.
func denied(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN)
}

// denial is the newest denied connection that a node knows, once there is one
// since a moment.
func denial(t *testing.T, m *e2e.Mesh, node, from, to string, since time.Time) (last admin.Connection) {
	t.Helper()
	m.Eventually("node "+node+" knows the denial", func() error {
		for _, c := range m.Connections(node, "denied", from, to) {
			if c.Direction == admin.Inbound && c.Ended.After(since) {
				last = c
			}
		}
		if last.Since.IsZero() {
			return fmt.Errorf("no denied connection from %s to %s", from, to)
		}
		return nil
	})
	return last
}

// logged is the first line of a program's log behind a mark that has all of
// these fields.
func logged(t *testing.T, m *e2e.Mesh, p *world.Program, mark int64, want map[string]any) map[string]any {
	t.Helper()
	var found map[string]any
	_, err := p.WaitLog(m.Context(), mark, func(line string) bool {
		fields := parse(line)
		for name, value := range want {
			if fields[name] != value {
				return false
			}
		}
		found = fields
		return fields != nil
	})
	if err != nil {
		t.Fatalf("log line with %v: %v", want, err)
	}
	return found
}

// parse reads a line of a log; nil for one of another form.
func parse(line string) (fields map[string]any) {
	if json.Unmarshal([]byte(line), &fields) != nil {
		return nil
	}
	return fields
}

// explain runs "tacit explain" on a node and returns its answer and exit code.
func explain(t *testing.T, m *e2e.Mesh, node string, args ...string) (string, int) {
	t.Helper()
	args = append([]string{"explain", "--socket", m.Node(node).AdminSocket()}, args...)
	cmd := m.Node(node).Command(m.Context(), "/run/tacit/bin/tacit", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// live is a connection to an Echo server, in use.
type live struct {
	*net.TCPConn
	from string
}

func dialLive(t *testing.T, m *e2e.Mesh, from, to string) live {
	t.Helper()
	c, err := m.Dial(from, to)
	if err != nil {
		t.Fatal(err)
	}
	l := greeted(t, c, from)
	l.works(t)
	return l
}

// greeted waits until the server has said at which address it sees the client.
func greeted(t *testing.T, c *net.TCPConn, from string) live {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(e2e.Patience)); err != nil {
		t.Fatal(err)
	}
	greeting := make([]byte, len(callers[from])+1)
	if _, err := io.ReadFull(c, greeting); err != nil {
		t.Fatalf("%s: greeting: %v", from, err)
	}
	return live{c, from}
}

// works sends a text and gets it back.
func (l live) works(t *testing.T) {
	t.Helper()
	const text = "still here?"
	got := make([]byte, len(text))
	_, err := io.WriteString(l, text)
	if err == nil {
		_, err = io.ReadFull(l, got)
	}
	if err != nil || string(got) != text {
		t.Errorf("the live connection of %s: got %q, %v", l.from, got, err)
	}
}

// reset waits until the connection is reset.
func (l live) reset(t *testing.T) {
	t.Helper()
	if n, err := l.Read(make([]byte, 1)); n != 0 || !denied(err) {
		t.Errorf("the live connection of %s: read %d bytes, %v; want RST", l.from, n, err)
	}
}

// statusOf reads what the control plane says of a policy, once ok accepts it.
func statusOf(t *testing.T, m *e2e.Mesh, kind, name string, ok func(policyStatus) bool) (found policyStatus) {
	t.Helper()
	m.Eventually("status of "+kind+" "+name, func() error {
		var status controlStatus
		data, err := os.ReadFile(m.StatusFile())
		if err == nil {
			err = json.Unmarshal(data, &status)
		}
		if err != nil {
			return err
		}
		for _, p := range status.Policies {
			if p.Kind == kind && p.Namespace+"/"+p.Name == name {
				found = p
			}
		}
		if !ok(found) {
			return fmt.Errorf("it is %+v", found)
		}
		return nil
	})
	return found
}

type controlStatus struct {
	Policies       []policyStatus
	ManifestErrors []struct {
		File, Field, Message string
		Line                 int
	}
}

type policyStatus struct {
	Kind, Namespace, Name string
	Enforced              bool
	Messages              []string
}

// bounded ends with the test, or after twice the patience that others have.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*e2e.Patience)
	t.Cleanup(cancel)
	return ctx
}

// answeredSince is nil once a node's proxy has had answers of the control
// plane to both of its subscriptions after a moment.
func answeredSince(m *e2e.Mesh, node string, since time.Time) error {
	var status struct {
		Sections struct {
			ControlPlane struct {
				Connected           bool
				Addresses, Policies struct{ LastAck time.Time }
			}
		}
	}
	if err := m.Admin(node, "/status", &status); err != nil {
		return err
	}
	if c := status.Sections.ControlPlane; !c.Connected || !c.Addresses.LastAck.After(since) || !c.Policies.LastAck.After(since) {
		return fmt.Errorf("the control plane has not answered yet: %+v", c)
	}
	return nil
}

func read(t *testing.T, p *world.Program) string {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
