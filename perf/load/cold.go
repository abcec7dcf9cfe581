package load

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sharedPort is where proxies that share a connection among several of their
// pod's have it: HBONE's.
const sharedPort = 15008

// cold opens connections like connect, one after the other, each when no proxy
// in this network namespace has a connection to the far side: each takes a
// handshake. It needs CAP_NET_ADMIN.
func cold(ctx context.Context, c *client) error {
	for time.Now().Before(c.end) {
		if err := endShared(); err != nil {
			return err
		}
		if err := c.connectOnce(ctx, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// endShared has the kernel end the connections that proxies share, as ss -K does.
func endShared() error {
	const established = 1
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range sockets {
			if s.State != established || s.ID.DestinationPort != sharedPort {
				continue
			}
			local, remote := &net.TCPAddr{IP: s.ID.Source, Port: int(s.ID.SourcePort)}, &net.TCPAddr{IP: s.ID.Destination, Port: int(s.ID.DestinationPort)}
			if err := netlink.SocketDestroy(local, remote); err != nil {
				return fmt.Errorf("end the connection %v to %v: %w", local, remote, err)
			}
		}
	}
	return nil
}
