package lifecycle

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// roll replaces a node's proxy and checks that the old one makes way because
// the new one has taken over, not only because it is told to.
func roll(t *testing.T, m *e2e.Mesh, node string) (old *world.Program) {
	t.Helper()
	old, err := m.Node(node).RollProxy(m.Context())
	if err != nil {
		t.Fatal(err)
	}
	logs(t, m, old, 0, "a newer proxy has taken over")
	return old
}

// Planned replacements under load, on each node: nothing is refused and
// nothing is cut. Streams go on in the old proxy, which ends with the last.
func TestRoll(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	l := startLoad(t, m)
	for i, name := range []string{"a", "b"} {
		keep := keepListeners(t, m)
		endFlows := startFlows(t, m, 9000+10*i)
		old := roll(t, m, name)
		l.newEpoch()
		l.awaitServed(5)
		for _, c := range m.Connections(name, "live", "", "") {
			if port := c.Original.Port(); port >= 9000 && port < 9100 {
				t.Errorf("the new proxy of %s has a stream of the old one: %+v", name, c)
			}
		}
		select {
		case <-old.Ended():
			t.Fatalf("the old proxy of %s ended before its streams", name)
		default:
		}
		if err := old.Signal(syscall.SIGTERM); err != nil { // once more changes nothing
			t.Fatal(err)
		}
		l.newEpoch()
		l.awaitServed(2)
		endFlows()
		if err := old.Wait(m.Context()); err != nil {
			t.Error(err)
		}
		keep()
	}
}

// A planned restart of the agent, and the time without one, under load: the
// rules stay, and nothing is refused or cut. So it is while a proxy drains.
func TestAgentRestart(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	l := startLoad(t, m)
	keep := keepListeners(t, m)
	before := rules(t, m, "mesh/near")
	endFlows := startFlows(t, m, 9000)
	restart := func() {
		t.Helper()
		if err := m.Node("a").Agent().Stop(m.Context()); err != nil {
			t.Fatal(err)
		}
		if now := rules(t, m, "mesh/near"); now != before {
			t.Errorf("without the agent the rules are\n%s\nthey were\n%s", now, before)
		}
		l.newEpoch()
		startAgent(t, m, "a")
		l.newEpoch()
		l.awaitServed(5)
		keep()
	}
	restart()
	old := roll(t, m, "a")
	restart()
	l.newEpoch()
	l.awaitServed(5)
	select {
	case <-old.Ended():
		t.Error("the draining proxy ended before its streams")
	default:
	}
	endFlows()
	if err := old.Wait(m.Context()); err != nil {
		t.Error(err)
	}
}

var counters = regexp.MustCompile(`\[[0-9]+:[0-9]+\]`)

// rules are a pod's, without what changes by itself.
func rules(t *testing.T, m *e2e.Mesh, pod string) string {
	t.Helper()
	var all strings.Builder
	for _, command := range []string{"iptables-save", "ip6tables-save", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"} {
		args := strings.Fields(command)
		out, err := m.Pod(pod).Command(t.Context(), args[0], args[1:]...).Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		fmt.Fprintf(&all, "== %s\n", command)
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") {
				all.WriteString(counters.ReplaceAllString(line, ""))
			}
		}
	}
	return all.String()
}

// Who has live connections when the grace ends sees RST; the process ends.
func TestDrainGrace(t *testing.T) {
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--drain", "1s"}})
	serveEverywhere(m)
	l := startLoad(t, m)
	var streams []*stream
	for i, p := range [][2]string{{"mesh/client", "mesh/server"}, {"mesh/server", "mesh/client"}, {"mesh/client", "mesh/near"}, {"outside/target", "mesh/near"}} {
		s := openStream(t, m, p[0], p[1], 9000+i)
		if err := s.speak(clientEnd, 1000); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	old := roll(t, m, "a")
	if err := old.Wait(m.Context()); err != nil {
		t.Error(err)
	}
	for _, s := range streams {
		for end := range s.ends {
			if err := s.ended(end); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s, end %d: got %v, want RST", s.name, end, err)
			}
		}
	}
	l.newEpoch()
	l.awaitServed(3)
}

// A proxy that lingers has drained for its successor and yet ends only when it
// is told to; who starts ended programs again is not asked to.
func TestLinger(t *testing.T) {
	m := e2e.StartWith(t, world.Config{ProxyArgs: []string{"--linger"}})
	old := m.Node("a").Proxy()
	if err := m.Node("a").StartProxy(m.Context()); err != nil { // and nobody tells the old one
		t.Fatal(err)
	}
	logs(t, m, old, 0, "drained; waiting to be told to end")
	select {
	case <-old.Ended():
		t.Fatal("the old proxy ended by itself")
	default:
	}
	if err := old.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := old.Wait(m.Context()); err != nil {
		t.Error(err)
	}
}

// A third proxy while one drains: two of them may drain at no time. The one
// that has had its time resets what it still has, the second one goes on.
func TestThirdProxy(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	l := startLoad(t, m)
	first := openStream(t, m, "mesh/client", "mesh/server", 9000)
	one := roll(t, m, "a")
	second := openStream(t, m, "mesh/client", "mesh/server", 9001)
	l.kill(func() error { // it may still have connections of the load
		two := roll(t, m, "a")
		t.Cleanup(func() { _ = two.Kill() })
		return one.Wait(m.Context())
	})
	if err := first.ended(clientEnd); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stream of the first proxy: %v, want RST", err)
	}
	for _, end := range []int{clientEnd, serverEnd} {
		if err := second.speak(end, 10_000); err != nil {
			t.Error(err)
		}
	}
	l.awaitServed(5)
}

// Killed while it drains, or told to end without a successor: what comes
// waits for the next one, whichever order the agent and the proxies see.
func TestRollWithoutSurge(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	l := startLoad(t, m)
	keep := keepListeners(t, m)
	endFlows := startFlows(t, m, 9000)
	node := m.Node("a")
	old := node.Proxy()
	if err := old.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.newEpoch()
	l.queue(touching("a")...)
	if err := node.Agent().Kill(); err != nil { // now the draining proxy alone has the listeners
		t.Fatal(err)
	}
	l.queue(touching("a")...)
	if err := node.StartAgent(m.Context()); err != nil {
		t.Fatal(err)
	}
	if err := node.StartProxy(m.Context()); err != nil {
		t.Fatal(err)
	}
	l.awaitServed(5)
	keep()
	endFlows()
	if err := old.Wait(m.Context()); err != nil {
		t.Error(err)
	}
	l.newEpoch()
	l.awaitServed(3)
}

func contains(text string, all ...string) bool {
	return !slices.ContainsFunc(all, func(s string) bool { return !strings.Contains(text, s) })
}

// logs waits for a line with all of these words.
func logs(t *testing.T, m *e2e.Mesh, p *world.Program, mark int64, words ...string) {
	t.Helper()
	if _, err := p.WaitLog(m.Context(), mark, func(line string) bool { return contains(line, words...) }); err != nil {
		t.Fatalf("%v in %s's log: %v", words, p.Name, err)
	}
}
