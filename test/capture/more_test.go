package capture

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// A pod under a new UID in the namespace of the one before: never two at once.
func TestSuccessorInTheSameNamespace(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	n.update(func(p *pods.Pod) { p.UID = "uid-2" })
	n.await(pods.StateCaptured)
	if _, err := say(pod.dial(t, netip.AddrPortFrom(peer4, 80)), "hello"); err != nil || n.relay.out.Load() != 1 {
		t.Errorf("%v; captured %d", err, n.relay.out.Load())
	}
	eventually(t, 5*time.Second, "the first one is removed", func() bool { return n.relay.wasRemoved("uid-1") })
}

// What is not TCP passes, and is counted once a flow, also across a change of
// the rules.
func TestUncapturedIsCounted(t *testing.T) {
	pod, peer := newPair(t)
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	var server net.PacketConn
	peer.do(t, func() (err error) {
		server, err = net.ListenPacket("udp4", peer4.String()+":53")
		return err
	})
	defer server.Close()
	send := func() {
		var c net.Conn
		pod.do(t, func() (err error) {
			c, err = net.Dial("udp4", server.LocalAddr().String())
			return err
		})
		defer c.Close()
		for range 3 {
			if _, err := c.Write([]byte("query")); err != nil {
				t.Fatal(err)
			}
			server.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, _, err := server.ReadFrom(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	counted := func(want uint64) func() bool {
		return func() bool { return n.set.Status()[0].Uncaptured == want }
	}
	send()
	eventually(t, 10*time.Second, "one flow", counted(1))
	n.update(func(p *pods.Pod) { p.Skips.OutboundCIDRs = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")} })
	n.await(pods.StateCaptured)
	send()
	eventually(t, 10*time.Second, "two flows", counted(2))
}

func TestLocalProvider(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	l := sockets.NewLocal([]sockets.LocalPod{{Pod: sockets.Pod{UID: "uid-1"}, Enter: pod.Do}})
	r := newRelay(n.log)
	r.dial = l.Dial
	stop := background(t, func(ctx context.Context) error { return l.Run(ctx, r) })
	<-r.synced
	c, err := l.Dial(t.Context(), "uid-1", netip.Addr{}, netip.AddrPortFrom(peer4, 80))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := say(c, "hello"); err != nil || got != pod4.String()+" hello" {
		t.Errorf("%q, %v", got, err)
	}
	c.Close()
	pod.dial(t, netip.AddrPortFrom(pod4, 15001)).Close()
	stop()
	r.closeAll()
	r.wg.Wait()
	if !r.wasRemoved("uid-1") {
		t.Error("the pod was not removed")
	}
}

// When agent and proxy have ended, no descriptor of theirs is left.
func TestDescriptorsAreClosed(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, peer.listen(t, ":80"))
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	n := newNode(t, pod)
	n.startAgent(pods.BackendAuto)
	_, a, stopProxy := n.startProxy()
	n.await(pods.StateCaptured)
	<-n.relay.synced
	for range 50 {
		c, err := a.Dial(t.Context(), "uid-1", netip.Addr{}, netip.AddrPortFrom(peer4, 80))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if _, err := a.Save([]byte("x")); err != nil {
		t.Fatal(err)
	}
	n.stop()
	stopProxy()
	// The other ends of those dials are the echo server's.
	eventually(t, 5*time.Second, "as many descriptors as before", func() bool { return count() <= before })
}

// A resolver that asks from one port for ever is answered by its server once its
// queries are captured no more, by whatever way that ends.
func TestDNSCaptureEnds(t *testing.T) {
	for name, end := range map[string]func(*node){
		"of the pod": func(n *node) { n.update(func(p *pods.Pod) { p.DNS, p.DNSServers = false, nil }) },
		"with the agent's": func(n *node) {
			n.stop()
			n.pod.DNS, n.pod.DNSServers = false, nil
			n.startAgent(pods.BackendAuto)
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod, peer := newPair(t)
			n := newNode(t, pod)
			n.pod.DNS, n.pod.DNSServers = true, []netip.Addr{peer4}
			n.start(pods.BackendAuto)
			var server net.PacketConn
			peer.do(t, func() (err error) {
				server, err = net.ListenPacket("udp4", peer4.String()+":53")
				return err
			})
			defer server.Close()
			var resolver net.Conn
			pod.do(t, func() (err error) {
				resolver, err = net.Dial("udp4", server.LocalAddr().String())
				return err
			})
			defer resolver.Close()
			if _, err := resolver.Write([]byte("query")); err != nil {
				t.Fatal(err)
			}
			if flows := pod.run(t, "cat", "/proc/net/nf_conntrack"); !strings.Contains(flows, "sport=15053") {
				t.Fatalf("the query was not captured:\n%s", flows)
			}
			end(n)
			n.await(pods.StateCaptured)
			eventually(t, 10*time.Second, "a query arrives", func() bool {
				_, _ = resolver.Write([]byte("query")) // it may hear of one before that nobody read
				_ = server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				_, _, err := server.ReadFrom(make([]byte, 16))
				return err == nil
			})
		})
	}
}
