package zds

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// maxLooks bounds how often addresses are read that change meanwhile.
const maxLooks = 5

// addresses are those that a namespace holds and others can reach.
func addresses(ns *netns.NS) (held []netip.Addr, err error) {
	for range maxLooks {
		held, err = pods.Addresses(ns)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return slices.DeleteFunc(held, func(a netip.Addr) bool { return !a.IsGlobalUnicast() }), err
}

// addressesOf are those of a pod, which has some.
func addressesOf(ns *netns.NS) ([]netip.Addr, error) {
	held, err := addresses(ns)
	if err == nil && len(held) == 0 {
		err = errors.New("its network namespace holds no address yet")
	}
	return held, err
}

// holdsNone reports whether a namespace is known to hold no address of a pod any
// more; none at all if those of the pod are not known, as nobody could ever look
// at it.
func holdsNone(ns *netns.NS, of []netip.Addr) bool {
	left, err := addresses(ns)
	return err == nil && !slices.ContainsFunc(left, func(a netip.Addr) bool { return len(of) == 0 || slices.Contains(of, a) })
}
