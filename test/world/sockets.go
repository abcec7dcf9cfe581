package world

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EndConnections has the kernel end all connections to a port of others, whoever
// made them in the caller's network namespace, as ss -K does.
func EndConnections(port uint16) error {
	const established = 1
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range sockets {
			if s.State != established || s.ID.DestinationPort != port {
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
