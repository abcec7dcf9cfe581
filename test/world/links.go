package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the backbone. Nodes follow from .11 on, in the order of their
// names.
var (
	// ControlAddress is where the control plane listens.
	ControlAddress = netip.MustParseAddr("198.18.0.1")

	backbone4  = netip.MustParsePrefix("198.18.0.1/24")
	backbone6  = netip.MustParsePrefix("fd00:7ac1::1/64")
	gateway6   = netip.MustParsePrefix("fe80::1/64") // of every pod
	bridgeName = "backbone"
)

const firstNode = 11

// nodeAddresses are a node's addresses on the backbone.
func nodeAddresses(index int) []netip.Addr {
	a4, a6 := backbone4.Addr().As4(), backbone6.Addr().As16()
	a4[3], a6[15] = byte(firstNode+index), byte(firstNode+index)
	return []netip.Addr{netip.AddrFrom4(a4), netip.AddrFrom16(a6)}
}

// haveIPv6 is asked of the kernel, as one without IPv6 is fine too.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// prepareNamespace sets what all namespaces have in common.
func prepareNamespace() error {
	settings := [][2]string{
		{"ipv4/ip_forward", "1"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
		{"ipv6/conf/all/forwarding", "1"},
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
	}
	for _, s := range settings {
		if err := writeSetting(s[0], s[1]); err != nil {
			return fmt.Errorf("set net/%s: %w", s[0], err)
		}
	}
	return setUp("lo")
}

func makeBackbone() error {
	bridge := &netlink.Bridge{LinkAttrs: linkNamed(bridgeName)}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	if err := setUp(bridgeName); err != nil {
		return err
	}
	return addAddresses(bridgeName, backbone4, backbone6)
}

// linkNode joins a node to the backbone. It runs in the backbone's namespace.
func linkNode(link string, node *Node) error {
	if err := addVeth(link, "eth0", node.netns); err != nil {
		return err
	}
	port, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("join bridge: %w", err)
	}
	if err := setUp(link); err != nil {
		return err
	}
	return node.netns.Do(func() error {
		if err := setUp("eth0"); err != nil {
			return err
		}
		v4, v6 := node.Addresses[0], node.Addresses[1]
		if err := addAddresses("eth0", netip.PrefixFrom(v4, backbone4.Bits()), netip.PrefixFrom(v6, backbone6.Bits())); err != nil {
			return err
		}
		return errors.Join(
			addRoute(route{to: anywhere(v4), via: backbone4.Addr(), dev: "eth0"}),
			addRoute(route{to: anywhere(v6), via: backbone6.Addr(), dev: "eth0"}))
	})
}

// linkPod gives a pod its eth0. It runs in the node's namespace. The pod's
// gateway is the node: its own address for IPv4, where ARP answers for any
// local address, and a link-local one for IPv6, where it must be the link's.
func linkPod(link string, pod *Pod) error {
	if err := addVeth(link, "eth0", pod.netns); err != nil {
		return err
	}
	if err := setUp(link); err != nil {
		return err
	}
	if err := addAddresses(link, gateway6); err != nil {
		return err
	}
	err := pod.netns.Do(func() error {
		if err := setUp("eth0"); err != nil {
			return err
		}
		for _, a := range pod.Addresses {
			if err := errors.Join(addAddresses("eth0", host(a)), addDefaultRoute(a, pod.Node)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, a := range pod.Addresses {
		err = errors.Join(err, addRoute(route{to: host(a), dev: link, src: pod.Node.address(a)}))
	}
	return err
}

// addDefaultRoute runs in the pod's namespace.
func addDefaultRoute(a netip.Addr, node *Node) error {
	if !a.Is4() {
		return addRoute(route{to: anywhere(a), via: gateway6.Addr(), dev: "eth0"})
	}
	gateway := node.address(a)
	if err := addRoute(route{to: host(gateway), dev: "eth0"}); err != nil {
		return err
	}
	return addRoute(route{to: anywhere(a), via: gateway, dev: "eth0"})
}

func addVeth(name, peer string, into *namespace) error {
	f, err := os.Open(into.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	veth := &netlink.Veth{LinkAttrs: linkNamed(name), PeerName: peer, PeerNamespace: netlink.NsFd(int(f.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth pair %s: %w", name, err)
	}
	return nil
}

func linkNamed(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func addAddresses(name string, prefixes ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, p := range prefixes {
		if p.Addr().Is6() && !haveIPv6() {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s on %s: %w", p, name, err)
		}
	}
	return nil
}

// route says where packets for a prefix go: to a neighbour on dev, or straight
// out of it; src is the address that local sockets take.
type route struct {
	to       netip.Prefix
	via, src netip.Addr
	dev      string
}

func addRoute(r route) error {
	if r.to.Addr().Is6() && !haveIPv6() {
		return nil
	}
	link, err := netlink.LinkByName(r.dev)
	if err != nil {
		return fmt.Errorf("link %s: %w", r.dev, err)
	}
	out := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.to)}
	if r.via.IsValid() {
		out.Gw = r.via.AsSlice()
	} else if r.to.Addr().Is4() {
		out.Scope = netlink.SCOPE_LINK
	}
	if r.src.IsValid() {
		out.Src = r.src.AsSlice()
	}
	if err := netlink.RouteReplace(out); err != nil {
		return fmt.Errorf("route to %s: %w", r.to, err)
	}
	return nil
}

func delRoute(to netip.Prefix) error {
	if to.Addr().Is6() && !haveIPv6() {
		return nil
	}
	err := netlink.RouteDel(&netlink.Route{Dst: ipNet(to)})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", to, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// anywhere is the prefix of length 0 in the family of a.
func anywhere(a netip.Addr) netip.Prefix {
	p, _ := a.Prefix(0) // 0 fits every family
	return p
}
