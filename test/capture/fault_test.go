package capture

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/redirect/pods"
)

// problem waits until the pod's owner is told of one.
func problem(t *testing.T, told <-chan pods.Problem, reason pods.Reason, text string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case p := <-told:
			if p.Reason == reason && strings.Contains(p.Text, text) {
				return
			}
			t.Errorf("told of %+v", p)
		case <-timeout:
			t.Fatalf("never told of %s: %s", reason, text)
		}
	}
}

// A node without iptables is said to be one, on each pod, and captures its
// pods as soon as it has them.
func TestWithoutIptables(t *testing.T) {
	pod, _ := newPair(t)
	n := newNode(t, pod)
	told := make(chan pods.Problem, 10)
	n.report = func(_ pods.Pod, p pods.Problem) { told <- p }
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	n.startAgent(pods.BackendAuto)
	problem(t, told, pods.ReasonFailed, "the agent needs the programs of the package iptables")
	if s := n.set.Status()[0]; s.State != pods.StatePending || s.Settled || s.Err == nil {
		t.Errorf("got %+v", s)
	}
	t.Setenv("PATH", path)
	n.await(pods.StateCaptured)
}

// What of a pod cannot be captured, or is not in force, its owner is told once.
func TestReports(t *testing.T) {
	pod, _ := newPair(t)
	pod.run(t, "ip", "address", "add", "198.18.99.1/24", "dev", "eth0")
	pod.run(t, "ip", "link", "add", "net1", "type", "veth", "peer", "name", "net2") // a further interface, as of Multus
	pod.run(t, "ip", "address", "add", "198.18.100.1/24", "dev", "net1")
	n := newNode(t, pod)
	n.pod.Faults = []string{"annotation of no use"}
	told := make(chan pods.Problem, 10)
	n.report = func(_ pods.Pod, p pods.Problem) { told <- p }
	n.start(pods.BackendAuto)
	problem(t, told, pods.ReasonIgnored, "annotation of no use")
	problem(t, told, pods.ReasonGap, "further addresses: 198.18.99.1, 198.18.100.1")
	pod.run(t, "ip", "address", "add", "198.18.101.1/24", "dev", "net1") // once it is captured
	problem(t, told, pods.ReasonGap, "further addresses: 198.18.99.1, 198.18.100.1, 198.18.101.1")
	n.update(func(p *pods.Pod) { p.Capture, p.Refused = false, "its runtime class" })
	problem(t, told, pods.ReasonRefused, "its runtime class")
	n.await(pods.StateLeft)
	select {
	case p := <-told:
		t.Errorf("told again of %+v", p)
	default:
	}
}

// A pod whose network namespace is still being looked for holds up no other, nor
// a proxy that waits for all pods before it takes over.
func TestStuckPod(t *testing.T) {
	pod, peer := newPair(t)
	n := newNode(t, pod)
	found := make(chan struct{})
	n.locate = func(p pods.Pod) (string, error) {
		if p.UID == n.pod.UID {
			<-found
		}
		return p.NetNS, nil
	}
	n.startAgent(pods.BackendAuto)
	t.Cleanup(func() { close(found) }) // before the agent is waited for
	other := n.pod
	other.UID, other.Name, other.NetNS, other.Addresses = "uid-2", "other", peer.path, []netip.Addr{peer4, peer6}
	n.set.Update([]pods.Pod{n.pod, other})
	eventually(t, 20*time.Second, "the other pod captured", func() bool {
		all := n.set.Status()
		return len(all) == 2 && all[0].Pod.UID == "uid-2" && all[0].Settled && all[1].State == pods.StatePending && all[1].Err == nil
	})
	n.startProxy()
	select {
	case <-n.relay.synced:
	case <-time.After(20 * time.Second):
		t.Error("a new proxy is not told that it has all pods")
	}
	n.set.Update([]pods.Pod{n.pod})
	eventually(t, 20*time.Second, "the other pod let go", func() bool { return len(n.set.Status()) == 1 })
	if rules := peer.run(t, "iptables-save"); strings.Contains(rules, "TACIT") {
		t.Errorf("left of it:\n%s", rules)
	}
}

// A label that goes on and off many times a second ends as the last one says,
// and cuts nothing on the way.
func TestFlapping(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	captured := pod.dial(t, netip.AddrPortFrom(peer4, 80))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range 31 {
		n.update(func(p *pods.Pod) { p.Capture = i%2 == 0 })
		if _, err := say(captured, "still here"); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		<-tick.C
	}
	n.await(pods.StateCaptured)
	seen := n.relay.out.Load()
	if _, err := say(pod.dial(t, netip.AddrPortFrom(peer4, 80)), "hello"); err != nil || n.relay.out.Load() != seen+1 {
		t.Errorf("not captured in the end: %v", err)
	}
}

// A pod without IPv4 is captured as any, both ways.
func TestWithoutIPv4(t *testing.T) {
	pod, peer := newPair(t)
	pod.run(t, "ip", "-4", "address", "flush", "dev", "eth0")
	echo(t, pod.listen(t, ":80"))
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	n.pod.Addresses = []netip.Addr{pod6}
	n.start(pods.BackendAuto)
	for _, tt := range []struct {
		from    testNS
		to, saw netip.Addr
	}{{pod, peer6, pod6}, {peer, pod6, peer6}} {
		got, err := say(tt.from.dial(t, netip.AddrPortFrom(tt.to, 80)), "hello")
		if err != nil || got != tt.saw.String()+" hello" {
			t.Errorf("the application on %v saw %q (%v), want the client %v", tt.to, got, err, tt.saw)
		}
	}
	if out, in := n.relay.out.Load(), n.relay.in.Load(); out != 1 || in != 1 {
		t.Errorf("the proxy saw %d connections out and %d in, want one each", out, in)
	}
}
