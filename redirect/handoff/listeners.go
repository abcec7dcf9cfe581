package handoff

import (
	"errors"
	"fmt"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
)

// listen makes the listeners that are missing, all of them before one is
// passed on, and closes those that are not wanted.
func (e *entry) listen() (err error) {
	if !e.DNS {
		protocol.CloseAll(e.dns)
		e.dns = nil
	}
	if e.listeners == nil {
		if e.listeners, err = listenAll(e.ns); err != nil {
			return err
		}
	}
	if e.DNS && e.dns == nil {
		err = e.ns.Do(func() (err error) {
			e.dns, err = protocol.ListenDNS()
			return err
		})
	}
	return err
}

// complete reports whether the pod has every listener that it needs.
func (e *entry) complete() bool { return e.listeners != nil && (!e.DNS || e.dns != nil) }

// close closes the listeners.
func (e *entry) close() {
	protocol.CloseAll(e.listeners)
	protocol.CloseAll(e.dns)
	e.listeners, e.dns = nil, nil
}

func listenAll(ns *netns.NS) (fds []int, err error) {
	err = ns.Do(func() error {
		for _, port := range ports() {
			fd, err := protocol.Listen(port)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		protocol.CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

func ports() []int {
	return []int{protocol.OutboundPort, protocol.PlaintextPort, protocol.HBONEPort}
}

// adopt takes listeners that a proxy offers for a pod that has none.
func (s *Server) adopt(e *entry, fds []int) bool {
	err := errors.New("it has listeners already")
	if e.listeners == nil {
		err = e.check(fds)
	}
	if err != nil {
		protocol.CloseAll(fds)
		s.cfg.Log.Debug("listeners from the proxy not needed", zap.String("pod", e.Namespace+"/"+e.Name), zap.Error(err))
		return false
	}
	e.listeners, e.dns = fds[:protocol.ListenersPerPod:protocol.ListenersPerPod], fds[protocol.ListenersPerPod:]
	if len(e.dns) == 0 {
		e.dns = nil
	}
	return true
}

// check makes sure that listeners are the pod's. Of a pod whose namespace is
// not known they show it.
func (e *entry) check(fds []int) error {
	if e.ns != nil {
		return checkListeners(fds, e.ns)
	}
	ns, err := namespaceOf(fds)
	if err != nil {
		return err
	}
	if err := checkListeners(fds, ns); err != nil {
		ns.Close()
		return err
	}
	e.ns = ns
	return nil
}

// namespaceOf opens the namespace to which listeners belong. That of the node
// is no pod's.
func namespaceOf(fds []int) (*netns.NS, error) {
	node, err := netns.At(netns.Own)
	if err != nil {
		return nil, err
	}
	ns, err := netns.FromSocket(fds[0])
	if err == nil && ns.ID() == node {
		ns.Close()
		return nil, errors.New("listeners in the node's own network namespace")
	}
	return ns, err
}

// checkListeners makes sure that sockets from a proxy, whose word is not
// taken for it, are the listeners of that namespace.
func checkListeners(fds []int, ns *netns.NS) error {
	for i, fd := range fds {
		port, datagrams := protocol.DNSPort, (i-protocol.ListenersPerPod)%2 == 0 // UDP, then TCP
		if i < protocol.ListenersPerPod {
			port, datagrams = ports()[i], false
		}
		if err := checkListener(fd, ns, port, datagrams); err != nil {
			return err
		}
	}
	return nil
}

func checkListener(fd int, ns *netns.NS, port int, datagrams bool) error {
	id, err := netns.OfSocket(fd)
	if err != nil {
		return err
	}
	if id != ns.ID() {
		return errors.New("listener of another network namespace")
	}
	protocolOf, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || datagrams != (protocolOf == unix.IPPROTO_UDP) {
		return errors.New("listener of another protocol")
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || !datagrams && listening != 1 {
		return errors.New("not a listener")
	}
	if got, err := localPort(fd); err != nil || got != port {
		return fmt.Errorf("listener on port %d, not %d", got, port)
	}
	return nil
}

func localPort(fd int) (int, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port, nil
	case *unix.SockaddrInet6:
		return sa.Port, nil
	}
	return 0, errors.New("not an IP socket")
}
