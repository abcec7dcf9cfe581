package capture

import (
	"net"
	"net/netip"
	"testing"

	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Both ways, both families: what is captured comes by way of the proxy, and
// the application sees the client's own address.
func TestCapture(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	echo(t, peer.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)

	for _, tt := range []struct {
		name    string
		from    testNS
		to, saw string
		out, in int64 // connections that the proxy has seen
	}{
		{"out, IPv4", pod, "198.18.77.2:80", "198.18.77.1", 1, 0},
		{"out, IPv6", pod, "[fd00:7ac1:77::2]:80", "fd00:7ac1:77::1", 1, 0},
		{"in, IPv4", peer, "198.18.77.1:80", "198.18.77.2", 0, 1},
		{"in, IPv6", peer, "[fd00:7ac1:77::1]:80", "fd00:7ac1:77::2", 0, 1},
		{"itself by its own address, IPv4", pod, "198.18.77.1:80", "198.18.77.1", 0, 0},
		{"itself by its own address, IPv6", pod, "[fd00:7ac1:77::1]:80", "fd00:7ac1:77::1", 0, 0},
		{"itself by loopback, IPv4", pod, "127.0.0.1:80", "127.0.0.1", 0, 0},
		{"itself by loopback, IPv6", pod, "[::1]:80", "::1", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, in := n.relay.out.Load(), n.relay.in.Load()
			c := tt.from.dial(t, netip.MustParseAddrPort(tt.to))
			got, err := say(c, "hello")
			if err != nil || got != tt.saw+" hello" {
				t.Errorf("the application saw %q (%v), want the client %s", got, err, tt.saw)
			}
			if out, in := n.relay.out.Load()-out, n.relay.in.Load()-in; out != tt.out || in != tt.in {
				t.Errorf("the proxy saw %d out and %d in, want %d and %d", out, in, tt.out, tt.in)
			}
		})
	}
}

// A proxy of the pod's own reaches it by its own address, as for a service
// that leads back to its client.
func TestDialToItself(t *testing.T) {
	pod, _ := newPair(t)
	echo(t, pod.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	for _, addr := range []netip.Addr{pod4, pod6} {
		for _, src := range []netip.Addr{{}, addr} {
			c, err := n.proxy.Dial(t.Context(), "uid-1", src, netip.AddrPortFrom(addr, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := say(c, "hello"); err != nil || got != addr.String()+" hello" {
				t.Errorf("from %v: %q, %v", src, got, err)
			}
		}
	}
	if out, in := n.relay.out.Load(), n.relay.in.Load(); out != 0 || in != 0 {
		t.Errorf("the proxy's own connections were captured: %d out, %d in", out, in)
	}
}

// The proxy's connection to an application has the client's address, and may
// get the very port that the client itself uses towards the same application.
func TestSamePortAsTheClient(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	for _, ns := range []testNS{pod, peer} {
		ns.run(t, "sh", "-c", "echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range")
	}
	for _, to := range []netip.Addr{pod4, pod6} {
		c := peer.dial(t, netip.AddrPortFrom(to, 80))
		if _, err := say(c, "hello"); err != nil {
			t.Errorf("to %v: %v", to, err)
		}
	}
	if in := n.relay.in.Load(); in != 2 {
		t.Errorf("the proxy saw %d connections, want 2", in)
	}
}

// The four combinations of skipping, switched while the pod runs; connections
// that live across a change go on.
func TestSkips(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":5432"))
	echo(t, peer.listen(t, ":5432"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	live := map[string]net.Conn{
		"out": pod.dial(t, netip.AddrPortFrom(peer4, 5432)),
		"in":  peer.dial(t, netip.AddrPortFrom(pod4, 5432)),
	}
	for name, c := range live {
		if _, err := say(c, "hello"); err != nil {
			t.Fatalf("connection %s: %v", name, err)
		}
	}
	port := model.PortSet{{First: 5432, Last: 5432}}
	all := []netip.Prefix{netip.MustParsePrefix("198.18.77.0/24"), netip.MustParsePrefix("fd00:7ac1:77::/64")}

	for _, tt := range []struct {
		name    string
		skips   model.Skips
		out, in int64
	}{
		{"neither", model.Skips{}, 2, 2},
		{"inbound", model.Skips{Inbound: port}, 2, 0},
		{"outbound", model.Skips{Outbound: port}, 0, 2},
		{"both", model.Skips{Inbound: port, Outbound: port}, 0, 0},
		{"a range", model.Skips{Inbound: model.PortSet{{First: 5000, Last: 6000}}}, 2, 0},
		{"destinations", model.Skips{OutboundCIDRs: all}, 0, 2},
		{"destinations of one family", model.Skips{OutboundCIDRs: all[:1]}, 1, 2},
		{"neither again", model.Skips{}, 2, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.skip(tt.skips)
			out, in := n.relay.out.Load(), n.relay.in.Load()
			for _, d := range []struct {
				from testNS
				to   netip.Addr
			}{{pod, peer4}, {pod, peer6}, {peer, pod4}, {peer, pod6}} {
				c := d.from.dial(t, netip.AddrPortFrom(d.to, 5432))
				if _, err := say(c, "hello"); err != nil {
					t.Errorf("to %v: %v", d.to, err)
				}
			}
			if out, in := n.relay.out.Load()-out, n.relay.in.Load()-in; out != tt.out || in != tt.in {
				t.Errorf("the proxy saw %d out and %d in, want %d and %d", out, in, tt.out, tt.in)
			}
			for name, c := range live {
				if _, err := say(c, "still here"); err != nil {
					t.Errorf("connection %s from before: %v", name, err)
				}
			}
		})
	}
}
