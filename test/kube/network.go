package kube

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// All of these are inside namespaces of the cluster's own.
const (
	bridge       = "nodes"
	gateway4     = "10.89.0.1" // where the control plane is
	gateway6     = "fd00:89::1"
	clusterDNS   = "10.96.0.10"
	servicesDual = "10.96.0.0/16,fd00:96::/112"
	podsDual     = "10.244.0.0/16,fd00:244::/32"
	serverPort   = "6443"
)

// addressPlan is what a node's number, from 1, makes of the above.
type addressPlan struct {
	Name               string
	Address4, Address6 string
	PodCIDR4, PodCIDR6 string
}

func planNode(number int) addressPlan {
	return addressPlan{
		Name:     fmt.Sprintf("node%d", number),
		Address4: fmt.Sprintf("10.89.0.%d", 10+number),
		Address6: fmt.Sprintf("fd00:89::%d", 10+number),
		PodCIDR4: fmt.Sprintf("10.244.%d.0/24", number),
		PodCIDR6: fmt.Sprintf("fd00:244:%d::/64", number),
	}
}

// makeBackbone makes the bridge that joins nodes and control plane. There are
// routes to pods, too: the API server calls webhooks in them.
func makeBackbone(nodes []addressPlan) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	for _, address := range []string{gateway4 + "/24", gateway6 + "/64"} {
		parsed, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		parsed.Flags = nodad
		if err := netlink.AddrAdd(link, parsed); err != nil {
			return fmt.Errorf("address %s: %w", address, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, node := range nodes {
		for cidr, via := range map[string]string{node.PodCIDR4: node.Address4, node.PodCIDR6: node.Address6} {
			if err := addRoute(link, cidr, via); err != nil {
				return fmt.Errorf("route to %s: %w", cidr, err)
			}
		}
	}
	return nil
}

const nodad = 0x02 // IFA_F_NODAD: addresses of our own making are nobody else's

func addRoute(link netlink.Link, cidr, via string) error {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(via)
	if err != nil {
		return err
	}
	destination, err := netlink.ParseIPNet(prefix.String())
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: destination, Gw: gateway.AsSlice()})
}

// connectNode gives the namespace of a process its eth0. The other end goes
// with the namespace, though not at once if sockets keep that alive: what is
// left of an earlier one is removed here.
func connectNode(name string, pid int) error {
	if old, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(old); err != nil {
			return fmt.Errorf("remove the old link of %s: %w", name, err)
		}
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	link := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MasterIndex: master.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("link to %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

func removeBackbone() error {
	link, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil //nolint:nilerr // it is not there
	}
	return netlink.LinkDel(link)
}
