package procs

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a Unix socket: of a connection that
// this one has made, who listened there first.
func Peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	if controlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); controlErr != nil {
		err = controlErr
	}
	if err != nil {
		return nil, fmt.Errorf("peer: %w", os.NewSyscallError("getsockopt SO_PEERCRED", err))
	}
	return cred, nil
}
