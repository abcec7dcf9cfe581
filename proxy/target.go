package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/route"
	"github.com/tacit-mesh/tacit/xds/model"
)

// target is where a stream of a peer goes.
type target struct {
	dst netip.AddrPort // the application, in the pod
	// named is what the peer has asked for, which an application that takes
	// what is meant for others is told; invalid unless the pod has one.
	named netip.AddrPort
	// service is the hostname of the service at named, of which it is told as
	// well; empty if it is a workload's or nobody's.
	service string
	// tunnel says that dst's port is that of such an application, on loopback.
	tunnel bool
}

// errNotServed refuses a name that is nobody's here, or is not yet.
var errNotServed = errors.New("which is no service of the pod")

// aim reads what a peer asks for. It waits for the control plane's first word on
// the pod, which says how the pod wants to be given its streams.
func (p *Proxy) aim(c *Connection, authority string, arrived netip.Addr) (target, error) {
	pod := c.pod
	if !pod.has(arrived) {
		return target{}, fmt.Errorf("CONNECT to %.64q at %v, which is not the pod's", authority, arrived)
	}
	ctx, cancel := context.WithTimeout(pod.ctx, decisionTimeout)
	defer cancel()
	s, _ := p.State.Wait(ctx, func(s *model.Snapshot) bool { return workloadOf(s, pod) != nil })
	if p.Demand != nil {
		s = p.hear(ctx, c.held, func(s *model.Snapshot) []string { return targetNames(s, workloadOf(s, pod), authority, arrived) })
	}
	return aimAt(s, workloadOf(s, pod), authority, arrived)
}

// aimAt reads the :authority of a CONNECT, "ADDRESS:PORT" or "HOSTNAME:PORT".
// An address must be the very one that the connection arrived at, unless what is
// there is behind the pod, a waypoint. It is no port of the proxy's own.
func aimAt(s *model.Snapshot, w *model.Workload, authority string, arrived netip.Addr) (target, error) {
	named, err := netip.ParseAddrPort(authority)
	named = netip.AddrPortFrom(named.Addr().Unmap(), named.Port())
	port := named.Port()
	switch {
	case err != nil:
		if named, port, err = aimAtName(s, w, authority); err != nil {
			return target{}, fmt.Errorf("CONNECT to %.64q: %w", authority, err)
		}
	case port == 0 || named.Addr() != arrived && !takes(s, w, named.Addr()):
		return target{}, fmt.Errorf("CONNECT to %.64q, which is not the pod at %v", authority, arrived)
	}
	to := target{dst: netip.AddrPortFrom(arrived, port)}
	if w != nil && w.Tunnel != nil {
		if w.Tunnel.PROXY && !named.IsValid() {
			return target{}, fmt.Errorf("CONNECT to %.64q: %w with an address of its own, of which the pod could be told", authority, errNotServed)
		}
		if w.Tunnel.PROXY {
			to.named, to.service = named, serviceAt(s, w, named.Addr(), authority)
		}
		if w.Tunnel.Port != 0 {
			to.dst, to.tunnel = netip.AddrPortFrom(arrived, w.Tunnel.Port), true
		}
	}
	if route.OwnPort(port) || route.OwnPort(to.dst.Port()) {
		return target{}, fmt.Errorf("CONNECT to %.64q, a port of the proxy itself", authority)
	}
	return to, nil
}

// takes reports whether a pod is given what is meant for another address.
func takes(s *model.Snapshot, w *model.Workload, a netip.Addr) bool {
	switch {
	case w == nil || !a.IsGlobalUnicast() || a.Zone() != "":
		return false
	case w.Tunnel != nil && w.Tunnel.PROXY:
		return true // it is told, and decides by itself
	}
	if of := s.WorkloadAt(w.Network, a); of != nil {
		return of.Waypoint != nil && s.IsGateway(*of.Waypoint, w)
	}
	return slices.ContainsFunc(s.ServicesAt(w.Network, a), func(v *model.Service) bool { return isWaypointOf(s, w, v) })
}

func isWaypointOf(s *model.Snapshot, w *model.Workload, v *model.Service) bool {
	return slices.ContainsFunc(v.Waypoints, func(g model.WeightedGateway) bool { return s.IsGateway(g.Gateway, w) })
}

// aimAtName reads an authority with a hostname, by which services are asked for
// from other networks: a virtual address of the service with the port that was
// asked for, if there is any, and the pod's own port.
func aimAtName(s *model.Snapshot, w *model.Workload, authority string) (named netip.AddrPort, port uint16, err error) {
	host, text, err := net.SplitHostPort(authority)
	asked, bad := strconv.ParseUint(text, 10, 16)
	switch {
	case err != nil || bad != nil || asked == 0 || host == "":
		return named, 0, errors.New("want ADDRESS:PORT or HOSTNAME:PORT")
	case isAddress(host):
		return named, 0, errors.New("want ADDRESS:PORT, an IPv6 address in brackets and without a zone")
	case !isHostname(host):
		return named, 0, errors.New("want ADDRESS:PORT or HOSTNAME:PORT")
	case w == nil:
		return named, 0, errNotServed
	}
	port = uint16(asked)
	for _, v := range preferred(s.ServicesNamed(host), w.Namespace) {
		own, member := w.Services[v.Key()]
		switch {
		case member:
			if port = portOf(own, v.Ports, port); port == 0 {
				return named, 0, fmt.Errorf("%w: it has no port %d", errNotServed, asked)
			}
		case !isWaypointOf(s, w, v):
			continue
		}
		return addressOf(v, w.Network, uint16(asked)), port, nil
	}
	return named, 0, errNotServed
}

// serviceAt is the hostname of the service that an authority means: where
// several share its address, or its name, one that is behind the pod.
func serviceAt(s *model.Snapshot, w *model.Workload, a netip.Addr, authority string) string {
	services := s.ServicesAt(w.Network, a)
	if host, _, err := net.SplitHostPort(authority); err == nil && !isAddress(host) {
		services = s.ServicesNamed(host)
	} else if s.WorkloadAt(w.Network, a) != nil {
		return ""
	}
	if len(services) == 0 {
		return ""
	}
	services = preferred(services, w.Namespace)
	first := slices.IndexFunc(services, func(v *model.Service) bool { return isWaypointOf(s, w, v) })
	return services[max(first, 0)].Hostname
}

// isHostname reports whether a text could name a service: labels as of DNS, of
// which the last is no number (RFC 1123 section 2.1, RFC 3696 section 2).
func isHostname(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if len(host) > 253 || strings.Trim(last, "0123456789") == "" {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return false
		}
	}
	return true
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// preferred puts the services of a namespace first, then canonical ones.
func preferred(services []*model.Service, namespace string) []*model.Service {
	rank := func(v *model.Service) int {
		switch {
		case v.Namespace == namespace:
			return 0
		case v.Canonical:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(services, func(a, b *model.Service) int { return rank(a) - rank(b) })
	return services
}

// portOf is where an endpoint serves a service's port: its own word counts more
// than the service's. 0 is nowhere.
func portOf(own, common []model.Port, port uint16) uint16 {
	for _, list := range [][]model.Port{own, common} {
		for _, p := range list {
			if p.Service == port && p.Target != 0 {
				return p.Target
			}
		}
	}
	return 0
}

// addressOf is a virtual address of a service in a network, IPv4 if there is
// one; invalid without any.
func addressOf(v *model.Service, network string, port uint16) (found netip.AddrPort) {
	for _, a := range v.Addresses {
		if a.Network == network && a.Prefix.IsSingleIP() && (!found.IsValid() || a.Prefix.Addr().Is4() && !found.Addr().Is4()) {
			found = netip.AddrPortFrom(a.Prefix.Addr(), port)
		}
	}
	return found
}
