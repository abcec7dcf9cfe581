package protocol

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DNSPort is where a pod's DNS queries are redirected to (Istio ambient's
// number).
const DNSPort = 15053

// HandsDNS is the version of the protocol from which on listeners for DNS are
// handed over.
const HandsDNS = 2

// MaxDNSListeners is how many descriptors AddPod and Offer bring, at most,
// behind the listeners of connections: one of UDP and one of TCP for IPv4, then
// the same for IPv6 where the pod has it; or none at all.
const MaxDNSListeners = 4

// dnsBuffer is how many bytes of queries wait, the kernel's own bookkeeping
// included, while a proxy is being replaced.
const dnsBuffer = 1 << 20

// ListenDNS makes the sockets for DNS queries in the calling thread's network
// namespace. They are bound to the loopback addresses, where redirected queries
// of the pod arrive and nobody else's.
func ListenDNS() (fds []int, err error) {
	var four unix.SockaddrInet4
	four.Port, four.Addr = DNSPort, [4]byte{127, 0, 0, 1}
	if fds, err = listenDNS(unix.AF_INET, &four); err != nil {
		return nil, err
	}
	var six unix.SockaddrInet6
	six.Port, six.Addr = DNSPort, [16]byte{15: 1}
	more, err := listenDNS(unix.AF_INET6, &six)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) { // no IPv6 in the kernel, or in the pod
		return fds, nil
	}
	if err != nil {
		CloseAll(fds)
		return nil, err
	}
	return append(fds, more...), nil
}

func listenDNS(domain int, at unix.Sockaddr) (fds []int, err error) {
	udp, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("listen for DNS in the pod: %w", os.NewSyscallError("socket", err))
	}
	fds = []int{udp}
	tcp, err := tcpSocket(domain)
	if err == nil {
		fds = append(fds, tcp)
		err = setInts(udp, []option{{unix.SOL_SOCKET, unix.SO_MARK, Mark}})
	}
	if err == nil {
		err = setInts(tcp, []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}})
	}
	for _, fd := range fds {
		if err == nil && domain == unix.AF_INET6 {
			err = setInts(fd, []option{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}})
		}
		if err == nil {
			err = os.NewSyscallError("bind", unix.Bind(fd, at))
		}
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(tcp, backlog))
	}
	if err != nil {
		CloseAll(fds)
		return nil, fmt.Errorf("listen for DNS on port %d in the pod: %w", DNSPort, err)
	}
	// Where that is not allowed the kernel's default has to do.
	_ = unix.SetsockoptInt(udp, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, dnsBuffer)
	return fds, nil
}

// checkListenerCount refuses what are no whole sets of listeners.
func checkListenerCount(n int) error {
	if n < ListenersPerPod || n > ListenersPerPod+MaxDNSListeners || (n-ListenersPerPod)%2 != 0 {
		return fmt.Errorf("%d descriptors, want %d, and pairs of listeners for DNS", n, ListenersPerPod)
	}
	return nil
}
