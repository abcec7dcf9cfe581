package capture

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/netns"
)

// Addresses of the pod under test and of a host beside it.
var (
	pod4  = netip.MustParseAddr("198.18.77.1")
	peer4 = netip.MustParseAddr("198.18.77.2")
	pod6  = netip.MustParseAddr("fd00:7ac1:77::1")
	peer6 = netip.MustParseAddr("fd00:7ac1:77::2")
)

// testNS is a network namespace that a file keeps alive.
type testNS struct {
	*netns.NS
	path string
}

func newNS(t *testing.T, path string) testNS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	made := make(chan error)
	go func() { // the thread ends with this goroutine: it is not brought back
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	n := testNS{ns, path}
	n.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

func (n testNS) do(t *testing.T, fn func() error) {
	t.Helper()
	if err := n.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// run executes a command inside.
func (n testNS) run(t *testing.T, args ...string) string {
	t.Helper()
	var out []byte
	n.do(t, func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			err = errors.New(strings.Join(args, " ") + ": " + string(out))
		}
		return err
	})
	return string(out)
}

// newPair makes the pod's namespace, as the file default_pod, and one beside
// it, joined by a cable.
func newPair(t *testing.T) (pod, peer testNS) {
	t.Helper()
	dir := t.TempDir()
	pod, peer = newNS(t, filepath.Join(dir, "default_pod")), newNS(t, filepath.Join(dir, "peer"))
	end, err := os.Open(peer.path)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	pod.do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(end.Fd())})
	})
	setUp := func(addrs ...netip.Addr) func() error {
		return func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			for _, a := range addrs {
				addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-8, a.BitLen())}, Flags: unix.IFA_F_NODAD}
				if err := netlink.AddrAdd(eth, addr); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(eth)
		}
	}
	pod.do(t, setUp(pod4, pod6))
	peer.do(t, setUp(peer4, peer6))
	pod.awaitRoute(t, pod6)
	peer.awaitRoute(t, peer6)
	return pod, peer
}

// awaitRoute waits until the kernel has made the local route of an IPv6
// address, which it does some time after the link is up.
func (n testNS) awaitRoute(t *testing.T, a netip.Addr) {
	t.Helper()
	eventually(t, 10*time.Second, "the local route of "+a.String(), func() bool {
		return strings.Contains(n.run(t, "ip", "-6", "route", "show", "table", "local"), "local "+a.String()+" dev eth0")
	})
}

// listen listens inside, for as long as the test runs.
func (n testNS) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var l net.Listener
	n.do(t, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects from inside.
func (n testNS) dial(t *testing.T, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := n.tryDial(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// tryDial stays on the thread that is inside: a net.Dialer may try both
// families on goroutines of its own.
func (n testNS) tryDial(to netip.AddrPort) (c *net.TCPConn, err error) {
	err = n.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		network := "tcp6"
		if to.Addr().Is4() {
			network = "tcp4"
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, to.String())
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

// eventually waits for kernel state or another process, neither of which
// says when it changes.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// stays is for what must not happen, and so never announces itself.
func stays(t *testing.T, during time.Duration, what string, holds func() bool) {
	t.Helper()
	end := time.NewTimer(during)
	defer end.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if !holds() {
			t.Fatalf("not so for %v: %s", during, what)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}
