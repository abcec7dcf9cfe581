package capture

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/rules"
	"github.com/tacit-mesh/tacit/xds/model"
)

// newProbed makes a pod whose only way out is its node, which stands beside it.
func newProbed(t *testing.T) (pod, host testNS, n *node) {
	t.Helper()
	pod, host = newPair(t)
	pod.run(t, "ip", "route", "add", "default", "via", peer4.String())
	pod.run(t, "ip", "-6", "route", "add", "default", "via", peer6.String())
	n = newNode(t, pod)
	n.host = host.path
	n.pod.Probes = model.PortSet{{First: 8080, Last: 8080}}
	for _, port := range []int{8080, 8081} {
		echo(t, pod.listen(t, fmt.Sprintf(":%d", port)))
	}
	return pod, host, n
}

func probeRules(t *testing.T, host testNS) string {
	t.Helper()
	out := host.run(t, "sh", "-c", "for p in iptables ip6tables; do for b in nft legacy; do $p-$b-save -t nat; done; done")
	return strings.Join(regexp.MustCompile(`.*--to-source.*`).FindAllString(out, -1), "\n")
}

// A probe passes the proxy to the ports that it is for, from an address that
// says so. Whatever else the node sends is ordinary traffic from the node.
func TestProbes(t *testing.T) {
	for _, backend := range []pods.Backend{pods.BackendNFT, pods.BackendLegacy} {
		t.Run(string(backend), func(t *testing.T) {
			_, host, n := newProbed(t)
			prepare(t, host, backend)
			before := snapshot(t, host)
			n.start(backend)
			for _, tt := range []struct {
				to   netip.Addr
				port uint16
				saw  string
				in   int64
			}{
				{pod4, 8080, rules.ProbeSource(rules.IPv4).String(), 0}, {pod6, 8080, rules.ProbeSource(rules.IPv6).String(), 0},
				{pod4, 8081, peer4.String(), 1}, {pod6, 8081, peer6.String(), 1},
			} {
				in := n.relay.in.Load()
				c := host.dial(t, netip.AddrPortFrom(tt.to, tt.port))
				if got, err := say(c, "hello"); err != nil || got != tt.saw+" hello" || n.relay.in.Load()-in != tt.in {
					t.Errorf("%v port %d: the application saw %q (%v), the proxy %d; want %s and %d", tt.to, tt.port, got, err, n.relay.in.Load()-in, tt.saw, tt.in)
				}
				c.Close()
			}
			n.update(func(p *pods.Pod) { p.Capture = false })
			n.await(pods.StateLeft)
			if got := snapshot(t, host); withoutEmpty(got, backend) != withoutEmpty(before, backend) {
				t.Errorf("left on the node (-before +after):\n%s", cmp.Diff(before, got))
			}
		})
	}
}

// withoutEmpty leaves out tables that the legacy backend keeps, empty.
func withoutEmpty(s string, backend pods.Backend) string {
	if backend != pods.BackendLegacy {
		return s
	}
	empty := regexp.MustCompile(`\*(raw|mangle|nat)\n(:[A-Z]+ ACCEPT \n)+COMMIT\n`)
	return regexp.MustCompile(`\n\n+`).ReplaceAllString(empty.ReplaceAllString(s, ""), "\n")
}

// The address of probes is believed because nobody else can have it.
func TestForgedProbes(t *testing.T) {
	pod, host, n := newProbed(t)
	n.pod.Skips.Outbound = model.PortSet{{First: 80, Last: 80}} // so that the pod's own packets leave
	n.start(pods.BackendAuto)
	source := rules.ProbeSource(rules.IPv4)
	pod.run(t, "ip", "address", "add", source.String(), "dev", "lo")
	echo(t, host.listen(t, ":80"))
	err := pod.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
		c, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(peer4, 80).String())
		if err == nil {
			c.Close()
		}
		return err
	})
	if err == nil {
		t.Error("a pod reached the node from the address of probes")
	}
	counted := host.run(t, "sh", "-c", "iptables-nft-save -c -t raw; iptables-legacy-save -c -t raw")
	if !regexp.MustCompile(`\[[1-9][0-9]*:[0-9]+\] -A TACIT_PREROUTING -s 169\.254\.7\.127/32 -j DROP`).MatchString(counted) {
		t.Errorf("nothing dropped the forged packets:\n%s", counted)
	}
}

// An agent that starts leaves the probes of pods that it has not looked at yet
// alone; what it finds changed it repairs; what nobody wants any more goes.
func TestProbesAcrossRestarts(t *testing.T) {
	_, host, n := newProbed(t)
	n.start(pods.BackendAuto)
	want := probeRules(t, host)
	if strings.Count(want, "\n") != 1 {
		t.Fatalf("the node's rules are\n%s", want)
	}
	n.stop()
	if got := probeRules(t, host); got != want {
		t.Errorf("without an agent:\n%s", got)
	}
	n.pod.Probes = model.PortSet{{First: 8081, Last: 8081}}
	n.startAgent(pods.BackendAuto)
	n.await(pods.StateCaptured)
	want = strings.ReplaceAll(want, "--dport 8080", "--dport 8081")
	eventually(t, 10*time.Second, "the new ports alone", func() bool { return probeRules(t, host) == want })
	host.run(t, "sh", "-c", "iptables-nft -t nat -F TACIT_POSTROUTING || iptables-legacy -t nat -F TACIT_POSTROUTING")
	eventually(t, 10*time.Second, "repaired", func() bool { return probeRules(t, host) == want })
	n.set.Update(nil)
	eventually(t, 10*time.Second, "gone with the pod", func() bool { return probeRules(t, host) == "" })
}

func TestCleanupOfNode(t *testing.T) {
	_, host, n := newProbed(t)
	prepare(t, host, pods.BackendNFT)
	before := snapshot(t, host)
	n.start(pods.BackendNFT)
	n.stop()
	if snapshot(t, host) == before {
		t.Fatal("nothing was changed: the test is void")
	}
	if err := pods.Cleanup(t.Context(), host.path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t, host)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}
