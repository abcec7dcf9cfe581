package lifecycle

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
)

const (
	optedIn  = "tacit.mesh/dataplane: enabled"
	captured = "tacit.mesh/redirection: enabled"
)

// manifest describes a pod; label and annotation may be empty.
type manifest struct {
	namespace, name, uid, node, account string
	label                               string
	annotations                         []string
	ips                                 []string
}

func (p manifest) String() string {
	var ips []string
	for _, ip := range p.ips {
		ips = append(ips, fmt.Sprintf("{ip: %q}", ip))
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, uid: %q, labels: {%s}, annotations: {%s}}
spec: {nodeName: %s, serviceAccountName: %s, containers: [{name: app, image: none}]}
status: {podIPs: [%s]}
`, p.name, p.namespace, p.uid, p.label, strings.Join(p.annotations, ", "), p.node, p.account, strings.Join(ips, ", "))
}

// security is how a node's proxy carries a stream that is open; "none" if it
// does not.
func security(m *e2e.Mesh, node string, s *stream) string {
	from := netip.MustParseAddrPort(s.address())
	for _, c := range m.Connections(node, "live", "", "") {
		if c.Source.Address == from {
			return c.Security
		}
	}
	return "none"
}

// awaitSecurity opens streams until one travels as wanted at the client's
// node, and returns that.
func awaitSecurity(t *testing.T, m *e2e.Mesh, node, from, to string, port int, want string) *stream {
	t.Helper()
	var found *stream
	m.Eventually(fmt.Sprintf("%s to %s travels as %q", from, to, want), func() error {
		s, err := tryStream(m, from, to, port)
		if err != nil {
			return err
		}
		if err := s.speak(clientEnd, 100); err != nil {
			s.abort()
			return err
		}
		if got := security(m, node, s); got != want {
			s.abort()
			return fmt.Errorf("it travels as %q", got)
		}
		found = s
		return nil
	})
	t.Cleanup(found.abort)
	return found
}

// trio is a stream whose client speaks first, one whose server does, and one
// that rests until its end.
type trio [3]*stream

func openTrio(t *testing.T, m *e2e.Mesh, from, to string) trio {
	t.Helper()
	var all trio
	for i := range all {
		all[i] = openStream(t, m, from, to, 9000)
	}
	return all
}

// speak is what the first two do before they rest.
func (x trio) speak(t *testing.T) {
	t.Helper()
	for first := range 2 {
		for _, end := range []int{first, 1 - first} {
			if err := x[first].speak(end, 5000); err != nil {
				t.Error(err)
			}
		}
	}
}

func (x trio) finish(t *testing.T) {
	t.Helper()
	x.speak(t)
	for _, s := range x {
		if err := s.finish(); err != nil {
			t.Error(err)
		}
	}
}

// A pod that runs is enrolled and un-enrolled, on the client's and on the
// server's side: connections that live across it go on as they began, new ones
// follow what holds now.
func TestEnrolment(t *testing.T) {
	m := e2e.Start(t)
	client := manifest{namespace: "outside", name: "plain", node: "a", account: "plain", ips: []string{"198.18.1.30", "fd00:7ac1:1::30"}}
	server := manifest{namespace: "outside", name: "target", node: "b", account: "target", ips: []string{"198.18.2.30", "fd00:7ac1:2::30"}}
	pairs := [][2]string{{"outside/plain", "outside/target"}, {"mesh/client", "outside/target"}, {"outside/plain", "mesh/server"}}
	apply := func(label string, annotations ...string) {
		t.Helper()
		client.label, server.label = label, label
		client.annotations, server.annotations = annotations, annotations
		m.MustApply(client.String() + "---" + server.String())
	}
	var live []trio
	open := func() {
		t.Helper()
		for _, p := range pairs {
			live = append(live, openTrio(t, m, p[0], p[1]))
		}
	}
	speak := func() {
		t.Helper()
		for _, x := range live {
			x.speak(t)
		}
	}

	open()
	speak()
	marks := [2]int64{m.Node("a").Agent().Mark(), m.Node("b").Agent().Mark()}
	apply(optedIn)
	logs(t, m, m.Node("a").Agent(), marks[0], "pod captured", "outside/plain")
	logs(t, m, m.Node("b").Agent(), marks[1], "pod captured", "outside/target")
	speak()
	open() // peers do not know yet
	speak()
	apply(optedIn, captured)
	for _, p := range pairs {
		awaitSecurity(t, m, "a", p[0], p[1], 9100, "mtls").abort()
	}
	speak()
	open() // meshed
	speak()

	apply(optedIn) // peers are told first
	awaitSecurity(t, m, "a", "mesh/client", "outside/target", 9100, "plain").abort()
	speak()
	marks = [2]int64{m.Node("a").Agent().Mark(), m.Node("b").Agent().Mark()}
	apply("")
	logs(t, m, m.Node("a").Agent(), marks[0], "pod releasing", "outside/plain")
	logs(t, m, m.Node("b").Agent(), marks[1], "pod releasing", "outside/target")
	awaitSecurity(t, m, "a", "outside/plain", "outside/target", 9100, "none").abort()
	speak()
	for _, x := range live {
		x.finish(t)
	}
	if t.Failed() {
		return
	}
	for _, x := range live {
		for _, s := range x {
			s.abort()
		}
	}
	logs(t, m, m.Node("a").Agent(), marks[0], "pod left", "outside/plain")
	logs(t, m, m.Node("b").Agent(), marks[1], "pod left", "outside/target")
}

// Skip lists that change: live connections go on as they began, new ones
// follow the lists, in all four combinations.
func TestSkipsChangedLive(t *testing.T) {
	m := e2e.Start(t)
	client := manifest{namespace: "mesh", name: "client", node: "a", account: "client", ips: []string{"198.18.1.10", "fd00:7ac1:1::10"}}
	server := manifest{namespace: "mesh", name: "server", node: "b", account: "server", ips: []string{"198.18.2.10", "fd00:7ac1:2::10"}}
	const out, in = `tacit.mesh/skip-outbound-ports: "9000"`, `tacit.mesh/skip-inbound-ports: "8999-9001"`
	var live []*stream
	for _, step := range []struct {
		name             string
		client, server   []string
		atClient, atPeer string
	}{
		{"neither", nil, nil, "mtls", "mtls"},
		{"inbound", nil, []string{in}, "skipped", "none"},
		{"both", []string{out}, []string{in}, "none", "none"},
		{"outbound", []string{out}, nil, "none", "plain"},
		{"neither again", nil, nil, "mtls", "mtls"},
	} {
		t.Run(step.name, func(t *testing.T) {
			client.annotations = append([]string{captured}, step.client...)
			server.annotations = append([]string{captured}, step.server...)
			m.MustApply(client.String() + "---" + server.String())
			var s *stream
			m.Eventually("the new state holds", func() error {
				var err error
				if s, err = tryStream(m, "mesh/client", "mesh/server", 9000); err != nil {
					return err
				}
				if err := s.speak(serverEnd, 100); err != nil {
					s.abort()
					return err
				}
				here, there := security(m, "a", s), "none"
				for _, c := range m.Connections("b", "live", "mesh/client", "mesh/server") {
					// The peer's view has no port of the client's on mTLS.
					if here == "mtls" || c.Source.Address.String() == s.address() {
						there = c.Security
					}
				}
				if here != step.atClient || here != "mtls" && there != step.atPeer {
					s.abort()
					return fmt.Errorf("it travels as %q and arrives as %q", here, there)
				}
				return nil
			})
			live = append(live, s)
			for _, s := range live {
				for _, end := range []int{clientEnd, serverEnd} {
					if err := s.speak(end, 5000); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for _, s := range live {
		if err := s.finish(); err != nil {
			t.Error(err)
		}
		s.abort()
	}
}
