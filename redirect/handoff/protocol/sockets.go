package protocol

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The ports on which every captured pod listens, in the order in which
// listeners are passed (Istio ambient's numbers).
const (
	OutboundPort  = 15001
	PlaintextPort = 15006
	HBONEPort     = 15008
)

// Mark is carried by the packets of every socket made here, under the mask
// 0xfff: capture leaves them alone (Istio ambient's number).
const Mark = 0x539

// A captured connection must not be forgotten by conntrack while it is silent:
// the shortest default timeout of a half-closed one is 60 s.
const (
	keepAliveIdle     = 30 // s
	keepAliveInterval = 10 // s
	keepAliveProbes   = 9
)

// The kernel cuts it to net.core.somaxconn of the pod.
const backlog = 65535

// Listen makes a listening socket for port on every address of the calling
// thread's network namespace, IPv4 and IPv6 where the kernel has it. There is
// no SO_REUSEPORT: another process in the pod could join the group and take a
// share of the connections.
func Listen(port int) (fd int, err error) {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	fd, err = tcpSocket(unix.AF_INET6)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		sa = &unix.SockaddrInet4{Port: port}
		fd, err = tcpSocket(unix.AF_INET)
	} else if err == nil {
		err = setInts(fd, []option{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0}})
	}
	if err == nil {
		err = setInts(fd, []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}})
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
	}
	if err != nil {
		closeIfOpen(fd)
		return -1, fmt.Errorf("listen on port %d in the pod: %w", port, err)
	}
	return fd, nil
}

// NewDialing makes an unconnected socket in the calling thread's network
// namespace, that may be bound to a foreign address and that capture leaves
// alone.
func NewDialing(family Family) (fd int, err error) {
	options := []option{
		{unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	}
	switch family {
	case Family_FAMILY_IPV4:
		fd, err = tcpSocket(unix.AF_INET)
		options = append(options, option{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1}, option{unix.IPPROTO_IP, unix.IP_FREEBIND, 1})
	case Family_FAMILY_IPV6:
		fd, err = tcpSocket(unix.AF_INET6)
		options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1}, option{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1},
			option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	default:
		return -1, fmt.Errorf("dialing socket: unknown family %d", family)
	}
	if err == nil {
		err = setInts(fd, options)
	}
	if err != nil {
		closeIfOpen(fd)
		return -1, fmt.Errorf("dialing socket: %w", err)
	}
	return fd, nil
}

// tcpSocket makes a marked socket with keepalive; accepted connections inherit
// both.
func tcpSocket(domain int) (int, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = setInts(fd, []option{
		{unix.SOL_SOCKET, unix.SO_MARK, Mark},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes},
	})
	return fd, err
}

type option struct{ level, name, value int }

func setInts(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("setsockopt %d/%d: %w", o.level, o.name, err)
		}
	}
	return nil
}

func closeIfOpen(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// Duplicate makes descriptors of the same files, all or none.
func Duplicate(fds []int) ([]int, error) {
	var copies []int
	for _, fd := range fds {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			CloseAll(copies)
			return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		copies = append(copies, c)
	}
	return copies, nil
}

// CloseAll closes descriptors, negative ones apart.
func CloseAll(fds []int) {
	for _, fd := range fds {
		closeIfOpen(fd)
	}
}

// Seals keep the memory behind a Save from ever changing.
const Seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// CheckSealed makes sure that a descriptor is memory that never changes.
func CheckSealed(fd int) error {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("not a memfd: %w", os.NewSyscallError("fcntl F_GET_SEALS", err))
	}
	if seals&Seals != Seals {
		return errors.New("a memfd that can still be changed")
	}
	return nil
}
