package sockets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
)

// connect uses up a dialing socket: it becomes a connection or is closed.
// byLoopback is for one that stands for another from elsewhere to the socket's
// own pod.
func connect(ctx context.Context, fd int, src netip.Addr, dst netip.AddrPort, byLoopback bool) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "dialing socket") // the descriptor is non-blocking, so f waits in the runtime's poller
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", dst, err)
	}
	if controlErr := raw.Control(func(fd uintptr) { err = start(int(fd), src, dst, byLoopback) }); controlErr != nil {
		err = controlErr
	}
	if errors.Is(err, unix.EINPROGRESS) {
		err = finish(ctx, f)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", dst, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", dst, err)
	}
	return c.(*net.TCPConn), nil
}

// loopback is the index of the loopback device in every network namespace.
const loopback = 1

func start(fd int, src netip.Addr, dst netip.AddrPort, byLoopback bool) error {
	if byLoopback {
		// The ports of ended connections rest for a minute, so that some
		// hundred a second use up all there are. Those of connections bound
		// to loopback are lent again after a second (tcp_tw_reuse in Linux's
		// ip-sysctl.rst). Answers to a foreign address come that way, by the
		// agent's routing rules. Before Linux 5.7 only root may bind.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, loopback)
	}
	if src.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
			return os.NewSyscallError("bind "+src.String(), err)
		}
	}
	return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(dst)))
}

// finish waits until the connection is up, has failed, or the context ends.
func finish(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) (done bool) { // also called before the first wait: it may be up by now
		result = connected(int(fd))
		return !errors.Is(result, unix.EINPROGRESS)
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return result
}

func connected(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_ERROR", err)
	}
	if errno != 0 {
		return os.NewSyscallError("connect", unix.Errno(errno))
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return unix.EINPROGRESS // not yet
	}
	return nil
}

func familyOf(a netip.Addr) protocol.Family {
	if a.Is4() {
		return protocol.Family_FAMILY_IPV4
	}
	return protocol.Family_FAMILY_IPV6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// unmapped is dst and src in one family, where they have one.
func unmapped(src netip.Addr, dst netip.AddrPort) (netip.Addr, netip.AddrPort, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	src = src.Unmap()
	if !dst.IsValid() || src.IsValid() && src.Is4() != dst.Addr().Is4() {
		return src, dst, fmt.Errorf("dial %v from %v: addresses of one family are needed", dst, src)
	}
	return src, dst, nil
}
