package capture

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/zds"
	"github.com/tacit-mesh/tacit/redirect/zds/protocol"
	"github.com/tacit-mesh/tacit/redirect/zds/zdstest"
)

// istioNode is a node whose pods come from Istio's CNI agent, which the test
// plays.
type istioNode struct {
	*node
	istio  *zdstest.Agent
	client *zds.Client
}

func newIstioNode(t *testing.T, pod testNS) *istioNode {
	t.Helper()
	n := &istioNode{node: newNode(t, pod)}
	n.must(zdstest.Capture(pod.NS))
	var err error
	if n.istio, err = zdstest.Listen(n.istioSocket()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.istio.Close() })
	return n
}

func (n *istioNode) istioSocket() string { return filepath.Join(filepath.Dir(n.dir), "ztunnel.sock") }

// startAgent takes the place of the one that captures by itself.
func (n *istioNode) startAgent() {
	n.server = handoff.New(handoff.Config{Socket: filepath.Join(n.dir, "agent.sock"), ProxyUID: n.proxyUID, Log: n.log.Named("agent")})
	n.client = zds.New(zds.Config{Socket: n.istioSocket(), TrustDomain: "cluster.local", Sockets: n.server, Log: n.log.Named("agent")})
	n.stop = background(n.t, n.server.Run, n.client.Run)
}

func (n *istioNode) accept() *zdstest.Conn {
	n.t.Helper()
	c, err := n.istio.Accept(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (n *istioNode) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

var podInfo = &protocol.WorkloadInfo{Name: "pod", Namespace: "default", ServiceAccount: "default"}

// carries makes sure that connections come by way of the proxy, both ways and
// in both families, and that applications see their clients' own addresses.
func (n *istioNode) carries(pod, peer testNS) {
	n.t.Helper()
	out, in := n.relay.out.Load(), n.relay.in.Load()
	for _, d := range []struct {
		from testNS
		to   netip.Addr
		saw  netip.Addr
	}{{pod, peer4, pod4}, {pod, peer6, pod6}, {peer, pod4, peer4}, {peer, pod6, peer6}} {
		if got, err := say(d.from.dial(n.t, netip.AddrPortFrom(d.to, 80)), "hello"); err != nil || got != d.saw.String()+" hello" {
			n.t.Errorf("to %v: %q, %v", d.to, got, err)
		}
	}
	if out, in := n.relay.out.Load()-out, n.relay.in.Load()-in; out != 2 || in != 2 {
		n.t.Errorf("the proxy saw %d out and %d in, want 2 and 2", out, in)
	}
}

// Under Istio's CNI agent pods are served as ever, and nothing is changed in
// them; whatever restarts, connections go on.
func TestUnderIstio(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	echo(t, peer.listen(t, ":80"))
	n := newIstioNode(t, pod)
	before := snapshot(t, pod)
	n.startAgent()
	_, _, stopProxy := n.startProxy()
	istio := n.accept()
	n.must(istio.Add("uid-1", podInfo, pod.path))
	n.must(istio.SnapshotSent())
	<-n.relay.synced
	n.carries(pod, peer)
	if after := snapshot(t, pod); after != before {
		t.Errorf("the agent has changed something in the pod:\nbefore\n%s\nafter\n%s", before, after)
	}

	live := pod.dial(t, netip.AddrPortFrom(peer4, 80))
	still := func(what string) {
		t.Helper()
		if _, err := say(live, "hello"); err != nil {
			t.Errorf("%s, a live connection: %v", what, err)
		}
	}
	still("at first")
	n.must(istio.Close()) // Istio's agent restarts
	istio = n.accept()
	n.must(istio.Add("uid-1", podInfo, pod.path))
	n.must(istio.SnapshotSent())
	n.carries(pod, peer)
	still("after Istio's agent has restarted")

	n.stop() // ours does
	n.startAgent()
	istio = n.accept()
	n.addAgain(istio, pod)
	n.must(istio.SnapshotSent())
	n.awaitServed()
	n.carries(pod, peer)
	still("after our agent has restarted")

	n.stop() // and again, while Istio's does not know where the pod is
	n.startAgent()
	istio = n.accept()
	n.must(istio.Keep("uid-1"))
	n.must(istio.SnapshotSent())
	n.carries(pod, peer) // with what the proxy has
	eventually(t, 20*time.Second, "the proxy gets sockets of a pod that the agent merely keeps", func() bool { return n.server.Stats().Sockets > 0 })
	n.carries(pod, peer)
	still("while the pod is kept")
	n.addAgain(istio, pod)
	n.awaitServed()
	n.carries(pod, peer)
	still("after the pod is known again")

	n.must(istio.Del("uid-1")) // it leaves the mesh
	eventually(t, 20*time.Second, "the proxy lets go", func() bool { return n.relay.wasRemoved("uid-1") })
	still("after the pod has left the mesh")
	if c, err := peer.tryDial(netip.AddrPortFrom(pod4, 15008)); err == nil {
		c.Close()
		t.Error("port 15008 of a pod that has left the mesh is open")
	}
	stopProxy()
}

// addAgain adds the pod to an agent that has just started. The proxy, which has
// its ports, may connect later than Istio's agent.
func (n *istioNode) addAgain(istio *zdstest.Conn, pod testNS) {
	n.t.Helper()
	if err := istio.Add("uid-1", podInfo, pod.path); err != nil && !strings.Contains(err.Error(), "by a proxy that has not connected yet") {
		n.t.Fatal(err)
	}
}

func (n *istioNode) awaitServed() {
	n.t.Helper()
	eventually(n.t, 20*time.Second, "the pod is served", func() bool { return n.client.Stats() == zds.Stats{Served: 1} })
}

// A port that ztunnel still has is tried again until it is free.
func TestZtunnelLetsGo(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	echo(t, peer.listen(t, ":80"))
	n := newIstioNode(t, pod)
	n.startAgent()
	n.startProxy()
	ztunnel := pod.listen(t, ":15008")
	istio := n.accept()
	if err := istio.Add("uid-1", podInfo, pod.path); err == nil || !strings.Contains(err.Error(), "15008") {
		t.Errorf("with ztunnel there: %v", err)
	}
	n.must(istio.SnapshotSent())
	if s := n.client.Stats(); s != (zds.Stats{Failing: 1}) {
		t.Errorf("with ztunnel there: %+v", s)
	}
	ztunnel.Close()
	n.awaitServed()
	<-n.relay.synced
	eventually(t, 20*time.Second, "the proxy knows the pod", func() bool {
		c, err := n.proxy.Dial(context.Background(), "uid-1", netip.Addr{}, netip.AddrPortFrom(peer4, 80))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	n.carries(pod, peer)
}
