package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// liveConns are connections both ways whose ends take turns as applications
// do: one side speaks first, or neither for a long time.
type liveConns struct {
	ends map[string][2]net.Conn
}

func connect(t *testing.T, from, to testNS, addr netip.Addr, port uint16, into *liveConns, name string) {
	t.Helper()
	l := to.listen(t, fmt.Sprintf(":%d", port))
	c := from.dial(t, netip.AddrPortFrom(addr, port))
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l.Close()
	into.ends[name] = [2]net.Conn{c, s}
}

func newLiveConns(t *testing.T, pod, peer testNS, port uint16) *liveConns {
	t.Helper()
	live := &liveConns{ends: map[string][2]net.Conn{}}
	for i, addr := range []netip.Addr{peer4, peer6} {
		connect(t, pod, peer, addr, port+uint16(i), live, fmt.Sprintf("out to %v", addr))
	}
	for i, addr := range []netip.Addr{pod4, pod6} {
		connect(t, peer, pod, addr, port+10+uint16(i), live, fmt.Sprintf("in to %v", addr))
	}
	return live
}

// speak sends one message through every connection, from the end that is given.
func (l *liveConns) speak(t *testing.T, end int, message string) {
	t.Helper()
	for name, c := range l.ends {
		c[1-end].SetReadDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(c[end], message)
		got, err := bufio.NewReaderSize(c[1-end], 64).ReadString('\n')
		if err != nil || got != message+"\n" {
			t.Errorf("%s: %q arrived as %q (%v)", name, message, got, err)
		}
	}
}

// finish ends every connection in order, by half closes, and checks that each
// was seen as one.
func (l *liveConns) finish(t *testing.T) {
	t.Helper()
	for name, c := range l.ends {
		for end := range 2 {
			c[end].(*net.TCPConn).CloseWrite()
			c[1-end].SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := c[1-end].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%s: the end arrived as %d bytes, %v", name, n, err)
			}
			if end == 0 { // the other half is still there
				fmt.Fprintln(c[1], "last words")
				c[0].SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := bufio.NewReader(c[0]).ReadString('\n'); err != nil {
					t.Errorf("%s: after a half close: %v", name, err)
				}
			}
		}
		c[0].Close()
		c[1].Close()
	}
}

// Enrolling and un-enrolling cut nothing, whoever speaks first afterwards;
// nothing of ours is left at the end. Without rules of others, the kernel
// begins and ends connection tracking together with ours.
func TestEnrolmentUnderLiveConnections(t *testing.T) {
	for _, tt := range []struct {
		backend pods.Backend
		foreign bool
	}{{pods.BackendNFT, false}, {pods.BackendNFT, true}, {pods.BackendLegacy, true}} {
		t.Run(fmt.Sprintf("%s, foreign rules: %v", tt.backend, tt.foreign), func(t *testing.T) {
			pod, peer := newPair(t)
			if tt.foreign {
				prepare(t, pod, tt.backend)
			}
			before := snapshot(t, pod)
			n := newNode(t, pod)

			old := newLiveConns(t, pod, peer, 1000)
			oldIdle := newLiveConns(t, pod, peer, 1100)
			oldServerFirst := newLiveConns(t, pod, peer, 1200)
			n.start(tt.backend)
			old.speak(t, 0, "client after enrolment")
			oldServerFirst.speak(t, 1, "server after enrolment")
			if n.relay.out.Load()+n.relay.in.Load() > 0 {
				t.Error("connections from before were captured")
			}

			captured := newLiveConns(t, pod, peer, 1300)
			capturedIdle := newLiveConns(t, pod, peer, 1400)
			capturedServerFirst := newLiveConns(t, pod, peer, 1500)
			captured.speak(t, 0, "captured")
			n.update(func(p *pods.Pod) { p.Capture = false })
			n.await(pods.StateReleasing)
			old.speak(t, 1, "server after release")
			captured.speak(t, 0, "client after release")
			capturedServerFirst.speak(t, 1, "server after release")
			notCaptured(t, n, pod, peer)
			stays(t, 3*time.Second, "releasing, while connections live", func() bool { return n.set.Status()[0].State == pods.StateReleasing })
			captured.speak(t, 1, "server, later")
			for _, l := range []*liveConns{captured, capturedIdle, capturedServerFirst} {
				l.finish(t)
			}
			n.await(pods.StateLeft)
			for _, l := range []*liveConns{old, oldIdle, oldServerFirst} {
				l.finish(t)
			}
			if diff := cmp.Diff(before, snapshot(t, pod)); diff != "" {
				t.Errorf("what the agent left behind (-before +after):\n%s", diff)
			}
		})
	}
}

// A client that comes back during the release, from the port that the proxy had
// used in its name, is not cut by the end of it.
func TestReleaseWithTheSamePort(t *testing.T) {
	for _, to := range []netip.Addr{pod4, pod6} {
		t.Run(to.String(), func(t *testing.T) {
			pod, peer := newPair(t)
			echo(t, pod.listen(t, ":80"))
			n := newNode(t, pod)
			n.start(pods.BackendNFT)
			for _, ns := range []testNS{pod, peer} {
				ns.run(t, "sh", "-c", "echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range")
			}
			captured := peer.dial(t, netip.AddrPortFrom(to, 80))
			if _, err := say(captured, "hello"); err != nil || n.relay.in.Load() != 1 {
				t.Fatalf("not captured: %v", err)
			}
			captured.SetLinger(0) // so that the client may use its port again at once
			captured.Close()
			n.update(func(p *pods.Pod) { p.Capture = false })
			n.await(pods.StateReleasing)
			back := peer.dial(t, netip.AddrPortFrom(to, 80))
			if _, err := say(back, "hello"); err != nil || n.relay.in.Load() != 1 {
				t.Fatalf("captured again: %v", err)
			}
			stays(t, 5*time.Second, "connected", func() bool {
				_, err := say(back, "still here")
				return err == nil
			})
			back.Close()
			n.await(pods.StateLeft)
		})
	}
}

// While the release waits for a connection, those that have ended are forgotten:
// who comes from the port of one is not translated for its sake, and so not cut
// where it ends by force.
func TestReleaseForgetsWhatHasEnded(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendNFT)
	var both [2]*net.TCPConn
	for i := range both {
		both[i] = peer.dial(t, netip.AddrPortFrom(pod4, 80))
		if _, err := say(both[i], "hello"); err != nil {
			t.Fatal(err)
		}
	}
	remembered := func() bool { return strings.Contains(pod.run(t, "cat", "/proc/net/nf_conntrack"), "TIME_WAIT") }
	both[0].Close()
	eventually(t, 10*time.Second, "the end of a captured connection", remembered)
	n.update(func(p *pods.Pod) { p.Capture = false })
	n.await(pods.StateReleasing)
	// By itself the kernel would remember it for two minutes.
	eventually(t, 30*time.Second, "it is forgotten", func() bool { return !remembered() })
	if _, err := say(both[1], "still here"); err != nil || n.set.Status()[0].State != pods.StateReleasing {
		t.Errorf("the other one: %v, the pod %s", err, n.set.Status()[0].State)
	}
	both[1].Close()
	n.await(pods.StateLeft)
}

// notCaptured makes a new connection that the proxy must not see.
func notCaptured(t *testing.T, n *node, pod, peer testNS) {
	t.Helper()
	l := peer.listen(t, ":80")
	echo(t, l)
	seen := n.relay.out.Load()
	c := pod.dial(t, netip.AddrPortFrom(peer4, 80))
	if _, err := say(c, "hello"); err != nil || n.relay.out.Load() != seen {
		t.Errorf("a new connection after the release: %v; captured %d", err, n.relay.out.Load()-seen)
	}
	c.Close()
}

// A pod that is let go and taken back before its last connection has ended.
func TestTakenBack(t *testing.T) {
	pod, peer := newPair(t)
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	live := newLiveConns(t, pod, peer, 1000)
	n.update(func(p *pods.Pod) { p.Capture = false })
	n.await(pods.StateReleasing)
	n.update(func(p *pods.Pod) { p.Capture = true })
	n.await(pods.StateCaptured)
	echo(t, peer.listen(t, ":80"))
	seen := n.relay.out.Load()
	if _, err := say(pod.dial(t, netip.AddrPortFrom(peer4, 80)), "hello"); err != nil || n.relay.out.Load() != seen+1 {
		t.Errorf("not captured again: %v", err)
	}
	live.speak(t, 0, "still here")
	live.finish(t)
}

// foreign rules, of every kind that ours could get mixed up with.
const foreignRules = `*nat
:DOCKER_OUTPUT - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9999 -j REDIRECT --to-ports 9998
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A DOCKER_OUTPUT -p udp -m udp --dport 53 -j DNAT --to-destination %s
COMMIT
*mangle
-A OUTPUT -p udp -j MARK --set-xmark 0x7/0xffffffff
COMMIT
*raw
-A PREROUTING -p udp -m udp --dport 9999 -j CT --notrack
COMMIT
*filter
:TACITURN - [0:0]
-A INPUT -p tcp -m tcp --dport 9997 -j REJECT --reject-with tcp-reset
COMMIT
`

func prepare(t *testing.T, ns testNS, backend pods.Backend) {
	t.Helper()
	rules4 := fmt.Sprintf(foreignRules, "127.0.0.11:4053")
	rules6 := strings.ReplaceAll(fmt.Sprintf(foreignRules, "[::1]:4053"), "127.0.0.11/32", "::1/128")
	for program, rules := range map[string]string{"iptables": rules4, "ip6tables": rules6} {
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
			t.Fatal(err)
		}
		ns.run(t, program+"-"+string(backend)+"-restore", file)
	}
	ns.run(t, "ip", "rule", "add", "fwmark", "0x111/0xfff", "lookup", "200", "pref", "32000")
	ns.run(t, "ip", "route", "add", "198.18.200.0/24", "dev", "eth0", "table", "100")
	ns.run(t, "ip", "-6", "route", "add", "fd00:7ac1:200::/48", "dev", "eth0", "table", "100")
}

// passing is what changes by itself: times, counters, link-local addresses
// that are still being checked, and a hint of iptables-nft.
var passing = regexp.MustCompile(`(?m)^# .*\n|\[[0-9]+:[0-9]+\]|^.*\bfe80::.*\n`)

// snapshot is everything in a namespace that the agent may change.
func snapshot(t *testing.T, ns testNS) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft list tables",
		"ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"sysctl net.netfilter.nf_conntrack_tcp_timeout_close_wait net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
	} {
		fmt.Fprintf(&b, "== %s\n%s", command, passing.ReplaceAllString(ns.run(t, strings.Fields(command)...), ""))
	}
	return b.String()
}

func TestCleanup(t *testing.T) {
	for _, backend := range []pods.Backend{pods.BackendNFT, pods.BackendLegacy} {
		for _, foreign := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, foreign rules: %v", backend, foreign), func(t *testing.T) {
				pod, _ := newPair(t)
				if foreign {
					prepare(t, pod, backend)
				}
				before := snapshot(t, pod)
				n := newNode(t, pod)
				n.start(backend)
				n.stop()
				if snapshot(t, pod) == before {
					t.Fatal("nothing was changed: the test is void")
				}
				if err := pods.Cleanup(t.Context(), pod.path); err != nil {
					t.Fatal(err)
				}
				after := snapshot(t, pod)
				if !foreign && backend == pods.BackendLegacy { // the kernel keeps its tables, empty
					empty := regexp.MustCompile(`\*(raw|mangle|nat)\n(:[A-Z]+ ACCEPT \n)+COMMIT\n`)
					after = regexp.MustCompile(`\n\n+`).ReplaceAllString(empty.ReplaceAllString(after, ""), "\n")
				}
				if diff := cmp.Diff(before, after); diff != "" {
					t.Errorf("-before +after:\n%s", diff)
				}
				if err := pods.Cleanup(t.Context(), pod.path); err != nil {
					t.Errorf("once more: %v", err)
				}
			})
		}
	}
}

// What others change is put back.
func TestDrift(t *testing.T) {
	for _, backend := range []pods.Backend{pods.BackendNFT, pods.BackendLegacy} {
		t.Run(string(backend), func(t *testing.T) {
			pod, _ := newPair(t)
			prepare(t, pod, backend)
			n := newNode(t, pod)
			n.start(backend)
			want := snapshot(t, pod)
			ipt, ip6t := "iptables-"+string(backend), "ip6tables-"+string(backend)
			for _, damage := range []string{
				ipt + " -t nat -F TACIT_OUTPUT",
				ipt + " -t nat -D PREROUTING -j TACIT_PREROUTING",
				ip6t + " -t nat -I TACIT_OUTPUT -j ACCEPT",
				ip6t + " -t mangle -A OUTPUT -j TACIT_OUTPUT",
				ip6t + " -t nat -D OUTPUT -j TACIT_OUTPUT; " + ip6t + " -t nat -A OUTPUT -j TACIT_OUTPUT",
				ipt + " -t raw -D OUTPUT -j TACIT_OUTPUT",
				"ip rule del pref 32764",
				"ip -6 rule del pref 32763",
				"ip -6 route del local default table 100",
				"sysctl -w net.netfilter.nf_conntrack_tcp_timeout_fin_wait=120",
			} {
				before := n.set.Repairs()
				pod.run(t, "sh", "-c", damage)
				eventually(t, 10*time.Second, "repaired and counted: "+damage, func() bool { return snapshot(t, pod) == want && n.set.Repairs() > before })
			}
		})
	}
}

// While the agent or the proxy is away the kernel queues connections, and the
// one that stayed gives the listeners back.
func TestReplacement(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	echo(t, pod.listen(t, ":80"))
	n := newNode(t, pod)
	n.startAgent(pods.BackendAuto)
	_, first, stopFirst := n.startProxy()
	n.await(pods.StateCaptured)
	<-n.relay.synced
	if _, err := first.Save([]byte("secret")); err != nil {
		t.Fatal(err)
	}
	both := []struct {
		from testNS
		to   netip.Addr
	}{{pod, peer4}, {pod, peer6}, {peer, pod4}, {peer, pod6}}

	t.Run("agent", func(t *testing.T) {
		n.stop()
		for _, d := range both { // the spares carry them
			if _, err := say(d.from.dial(t, netip.AddrPortFrom(d.to, 80)), "hello"); err != nil {
				t.Errorf("without an agent, to %v: %v", d.to, err)
			}
		}
		var tried atomic.Bool
		n.locate = func(p pods.Pod) (string, error) {
			if !tried.Swap(true) {
				return "", errors.New("the first attempt of a new agent fails")
			}
			return p.NetNS, nil
		}
		n.startAgent(pods.BackendAuto)
		n.await(pods.StateCaptured)
		for range 5 { // more than spares
			for _, d := range both {
				if _, err := say(d.from.dial(t, netip.AddrPortFrom(d.to, 80)), "hello"); err != nil {
					t.Errorf("with a new agent, to %v: %v", d.to, err)
				}
			}
		}
		if gone := n.relay.wasRemoved("uid-1"); gone {
			t.Error("the pod was removed meanwhile")
		}
		if got := n.server.Stats(); got.Sockets == 0 || got.Failures > 0 || got.Proxies != 1 {
			t.Errorf("stats %+v", got)
		}
	})

	t.Run("proxy killed", func(t *testing.T) {
		stopFirst()
		var queued []*net.TCPConn
		for _, d := range both {
			queued = append(queued, d.from.dial(t, netip.AddrPortFrom(d.to, 80)))
		}
		_, second, _ := n.startProxy()
		for i, c := range queued {
			if _, err := say(c, "hello"); err != nil {
				t.Errorf("queued meanwhile, to %v: %v", both[i].to, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if got, err := second.Restore(ctx); err != nil || string(got) != "secret" {
			t.Errorf("what the first proxy saved came back as %q, %v", got, err)
		}
	})

	t.Run("proxy rolled", func(t *testing.T) {
		old, oldRelay := n.proxy, n.relay
		<-oldRelay.synced
		live := newLiveConns(t, pod, peer, 1000)
		live.speak(t, 0, "before")
		r, _, _ := n.startProxy()
		<-r.synced
		select {
		case <-old.Draining():
		case <-time.After(10 * time.Second):
			t.Fatal("the old proxy was not told to drain")
		}
		seen := oldRelay.out.Load() + oldRelay.in.Load()
		for _, d := range both {
			if _, err := say(d.from.dial(t, netip.AddrPortFrom(d.to, 80)), "hello"); err != nil {
				t.Errorf("to %v: %v", d.to, err)
			}
		}
		if oldRelay.out.Load()+oldRelay.in.Load() != seen || r.out.Load() != 2 || r.in.Load() != 2 {
			t.Error("new connections did not all go to the new proxy")
		}
		c, err := old.Dial(t.Context(), "uid-1", netip.Addr{}, netip.AddrPortFrom(peer4, 80))
		if err != nil {
			t.Errorf("the draining proxy dials: %v", err)
		} else {
			c.Close()
		}
		live.speak(t, 1, "after")
		live.finish(t)
	})
}

func (r *relay) wasRemoved(uid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.removed, uid)
}

// A namespace that vanishes under live connections takes every descriptor
// with it, and the pod's owner is told what cannot be found.
func TestNamespaceVanishes(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	told := make(chan pods.Problem, 10)
	n.report = func(_ pods.Pod, p pods.Problem) { told <- p }
	n.start(pods.BackendAuto)
	c := pod.dial(t, netip.AddrPortFrom(peer4, 80))
	if _, err := say(c, "hello"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	id := pod.ID()
	pod.Close()
	if err := unix.Unmount(pod.path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	os.Remove(pod.path)
	eventually(t, 5*time.Second, "no descriptor is in the namespace", func() bool { return !inUse(t, id) })
	eventually(t, 5*time.Second, "the proxy was told", func() bool { return n.relay.wasRemoved("uid-1") })
	problem(t, told, pods.ReasonFailed, "open the pod's network namespace: network namespace: open "+pod.path+": no such file or directory")
}

// inUse reports whether a socket or a file of this process keeps the
// namespace alive.
func inUse(t *testing.T, id netns.ID) bool {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var fd int
		fmt.Sscan(e.Name(), &fd)
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && (netns.ID{Dev: st.Dev, Inode: st.Ino}) == id {
			return true
		}
		if of, err := netns.OfSocket(fd); err == nil && of == id {
			return true
		}
	}
	return false
}

// Many dials at once get a socket each.
func TestManyDials(t *testing.T) {
	pod, peer := newPair(t)
	l := peer.listen(t, ":80")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	defer wg.Wait()
	defer l.Close()
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	began := time.Now()
	var dials sync.WaitGroup
	for range 20 {
		dials.Go(func() {
			for range 200 {
				c, err := n.proxy.Dial(t.Context(), "uid-1", netip.Addr{}, netip.AddrPortFrom(peer4, 80))
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
			}
		})
	}
	dials.Wait()
	t.Logf("4000 dials in %v", time.Since(began))
}

// A port that the pod uses itself: not captured, and said so.
func TestPortTaken(t *testing.T) {
	pod, _ := newPair(t)
	l := pod.listen(t, "127.0.0.1:15006")
	n := newNode(t, pod)
	n.startAgent(pods.BackendAuto)
	eventually(t, 10*time.Second, "an error", func() bool {
		all := n.set.Status()
		return len(all) == 1 && all[0].Err != nil && all[0].State == pods.StatePending && strings.Contains(all[0].Err.Error(), "port 15006")
	})
	if rules := pod.run(t, "iptables-save"); strings.Contains(rules, "TACIT") {
		t.Errorf("there are rules:\n%s", rules)
	}
	l.Close()
	n.await(pods.StateCaptured)
}

// A namespace that does not hold the pod's address is somebody else's.
func TestWrongNamespace(t *testing.T) {
	pod, peer := newPair(t)
	n := newNode(t, pod)
	n.pod.NetNS = peer.path
	n.startAgent(pods.BackendAuto)
	n.startProxy()
	<-n.relay.synced
	all := n.set.Status()
	if len(all) != 1 || all[0].Err == nil || all[0].State != pods.StatePending {
		t.Errorf("status %+v", all)
	}
	n.relay.mu.Lock()
	defer n.relay.mu.Unlock()
	if len(n.relay.pods) > 0 {
		t.Error("the proxy got the pod")
	}
}
