package lifecycle

import (
	"errors"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// foreign are rules of others in a pod, for both families.
const foreign = `*nat
:OTHERS - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9999 -j REDIRECT --to-ports 9998
-A OUTPUT -p udp -m udp --dport 53 -j OTHERS
COMMIT
*mangle
-A OUTPUT -p udp -j MARK --set-xmark 0x7/0xffffffff
COMMIT
*filter
-A INPUT -p tcp -m tcp --dport 9997 -j REJECT --reject-with tcp-reset
COMMIT
`

// run runs a shell line in a pod.
func run(t *testing.T, m *e2e.Mesh, pod, line string) {
	t.Helper()
	if out, err := m.Pod(pod).Command(t.Context(), "sh", "-c", line).CombinedOutput(); err != nil {
		t.Fatalf("%s in %s: %v: %s", line, pod, err, out)
	}
}

// Once everything has stopped, cleanup leaves each pod as it was before, with
// the rules of others in place.
func TestCleanup(t *testing.T) {
	m := e2e.Build(t, world.Config{})
	serveEverywhere(m)
	for _, p := range m.Pods() {
		run(t, m, p.Key, "iptables-restore <<'END'\n"+foreign+"END\nip6tables-restore <<'END'\n"+foreign+"END\nip rule add fwmark 0x7 lookup 200 pref 32000")
	}
	before := map[string]string{}
	for _, p := range m.Pods() {
		before[p.Key] = rules(t, m, p.Key)
	}
	if err := m.World.Start(m.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range everywhere {
		if _, err := m.Call(p.from, p.to); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range m.Nodes() {
		if err := errors.Join(n.Proxy().Stop(m.Context()), n.Agent().Stop(m.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if rules(t, m, "mesh/client") == before["mesh/client"] {
		t.Fatal("nothing was changed: the test is void")
	}
	out, err := m.Node("a").Command(m.Context(), "/run/tacit/bin/tacit-agent", "cleanup", "--netns-dir", m.NetnsDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, p := range m.Pods() {
		if after := rules(t, m, p.Key); after != before[p.Key] {
			t.Errorf("%s was\n%s\nand is\n%s", p.Key, before[p.Key], after)
		}
		if left := listeners(t, p); len(left) > 0 {
			t.Errorf("%s still listens on %v", p.Key, left)
		}
	}
	for _, p := range everywhere { // in clear, as ever
		if _, err := m.Call(p.from, p.to); err != nil {
			t.Error(err)
		}
	}
}

// What others damage in a pod is repaired, and said; from then on what is to
// be captured is.
func TestDrift(t *testing.T) {
	t.Parallel() // it waits for the next look
	m := e2e.Start(t)
	m.Serve("mesh/server", ":8080", e2e.Echo)
	want := map[string]string{"mesh/client": rules(t, m, "mesh/client"), "mesh/server": rules(t, m, "mesh/server")}
	live := openStream(t, m, "mesh/client", "mesh/server", 9000)
	mark := m.Node("a").Agent().Mark()
	markB := m.Node("b").Agent().Mark()
	run(t, m, "mesh/client", "iptables -t nat -F TACIT_OUTPUT; ip rule del pref 32764")
	run(t, m, "mesh/server", "iptables -t nat -D PREROUTING -j TACIT_PREROUTING; ip6tables -t mangle -F TACIT_OUTPUT")
	logs(t, m, m.Node("a").Agent(), mark, "was repaired", "mesh/client")
	logs(t, m, m.Node("b").Agent(), markB, "was repaired", "mesh/server")
	for pod, rulesBefore := range want {
		if got := rules(t, m, pod); got != rulesBefore {
			t.Errorf("%s was\n%s\nand is\n%s", pod, rulesBefore, got)
		}
	}
	for range 3 {
		awaitSecurity(t, m, "a", "mesh/client", "mesh/server", 9001, "mtls").abort()
	}
	for _, end := range []int{clientEnd, serverEnd} {
		if err := live.speak(end, 5000); err != nil {
			t.Error(err)
		}
	}
}

// A pod whose namespace has no IPv6 is enrolled, and works both ways.
func TestWithoutIPv6(t *testing.T) {
	pods := map[string]manifest{
		"mesh/old-client": {namespace: "mesh", name: "old-client", node: "a", account: "old", label: "tacit.mesh/dataplane: disabled", ips: []string{"198.18.1.60"}},
		"mesh/old-server": {namespace: "mesh", name: "old-server", node: "b", account: "old", label: "tacit.mesh/dataplane: disabled", ips: []string{"198.18.2.60"}},
	}
	m := e2e.Start(t, pods["mesh/old-client"].String()+"---"+pods["mesh/old-server"].String())
	for key, p := range pods {
		run(t, m, key, "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; ! ip -6 addr | grep .")
		agent := m.Node(p.node).Agent()
		mark := agent.Mark()
		p.label, p.annotations = optedIn, []string{captured}
		m.MustApply(p.String())
		logs(t, m, agent, mark, "pod captured", key)
	}
	for _, pair := range [][2]string{{"mesh/old-client", "mesh/old-server"}, {"mesh/client", "mesh/old-server"}, {"mesh/old-client", "mesh/server"}} {
		if err := awaitSecurity(t, m, "a", pair[0], pair[1], 9000, "mtls").finish(); err != nil {
			t.Error(err)
		}
	}
}

// A port that the pod itself uses: not enrolled, and why; enrolled once it is
// free. Others take no notice.
func TestPortTaken(t *testing.T) {
	busy := manifest{namespace: "mesh", name: "busy", node: "a", account: "busy", label: "tacit.mesh/dataplane: disabled", ips: []string{"198.18.1.61", "fd00:7ac1:1::61"}}
	m := e2e.Start(t, busy.String())
	serveEverywhere(m)
	l, err := m.Pod("mesh/busy").Listen(":15008")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	before := rules(t, m, "mesh/busy")
	agent := m.Node("a").Agent()
	mark := agent.Mark()
	busy.label = optedIn
	m.MustApply(busy.String())
	logs(t, m, agent, mark, "mesh/busy", "not as wanted", "port 15008", "in use")
	if now := rules(t, m, "mesh/busy"); now != before {
		t.Errorf("rules of a pod that is not enrolled:\n%s", now)
	}
	if _, err := m.Call("mesh/busy", "198.18.2.10:8080"); err != nil {
		t.Errorf("the pod itself: %v", err)
	}
	if _, err := m.Call("mesh/client", "198.18.1.20:8080"); err != nil {
		t.Errorf("another pod: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	logs(t, m, agent, mark, "pod captured", "mesh/busy")
	busy.annotations = []string{captured}
	m.MustApply(busy.String())
	awaitSecurity(t, m, "a", "mesh/client", "mesh/busy", 9000, "local").abort()
	awaitSecurity(t, m, "a", "mesh/busy", "mesh/server", 9000, "mtls").abort()
}
