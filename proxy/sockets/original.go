package sockets

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// getsockopt numbers of linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
const (
	soOriginalDst   = 80
	ip6tOriginalDst = 80
)

// OriginalDst is where a captured connection was going before it was
// redirected. For one that was made to the captured port itself it is the
// local address, and it is an error where the kernel has no record.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("original destination: not connected")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	var dst netip.AddrPort
	query := originalDst6
	if local.AddrPort().Addr().Unmap().Is4() { // IPv4 on a dual-stack socket included
		query = originalDst4
	}
	if rawErr := raw.Control(func(fd uintptr) { dst, err = query(fd) }); rawErr != nil {
		err = rawErr
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination of a connection from %v: %w", c.RemoteAddr(), err)
	}
	return dst, nil
}

func originalDst4(fd uintptr) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet4
	if err := getsockopt(fd, unix.IPPROTO_IP, soOriginalDst, unsafe.Pointer(&sa), unsafe.Sizeof(sa)); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), port(sa.Port)), nil
}

func originalDst6(fd uintptr) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet6
	if err := getsockopt(fd, unix.IPPROTO_IPV6, ip6tOriginalDst, unsafe.Pointer(&sa), unsafe.Sizeof(sa)); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), port(sa.Port)), nil
}

func getsockopt(fd uintptr, level, name int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(name), uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt SO_ORIGINAL_DST", errno)
	}
	return nil
}

// port reads a port that lies in memory in network order.
func port(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}
