package pods

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/redirect/handoff/protocol"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/rules"
)

// Functions here act on the calling thread's network namespace, unless they
// are given one.

// origin marks routes and routing rules as ours: a number of the kernel's
// "protocol" field that nobody else has registered.
const origin = 0x7a

func netlinkFamily(f rules.Family) int {
	if f == rules.IPv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// returnRules lead to the route below what applications answer to the proxy,
// and what the proxy sends them by sockets that it has bound to the loopback
// device.
func returnRules(f rules.Family) (answers, calls *netlink.Rule) {
	rule := func(priority int, mark uint32) *netlink.Rule {
		mask := uint32(markMask)
		r := netlink.NewRule()
		r.Family, r.Priority, r.Mark, r.Mask, r.Table, r.Protocol = netlinkFamily(f), priority, mark, &mask, table, origin
		return r
	}
	answers, calls = rule(answersRule, connMark), rule(callsRule, protocol.Mark)
	calls.OifName = "lo"
	return answers, calls
}

// returnRoute delivers everything locally.
func returnRoute(f rules.Family) (*netlink.Route, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("loopback device: %w", err)
	}
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if f == rules.IPv6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Table: table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: origin, Family: netlinkFamily(f)}, nil
}

// ensureReturn makes sure that applications and the proxy's sockets in the pod
// reach each other, whatever addresses these use.
func ensureReturn(f rules.Family) (changed bool, err error) {
	route, err := returnRoute(f)
	if err != nil {
		return false, err
	}
	answers, calls := returnRules(f)
	for _, add := range []func() error{
		func() error { return netlink.RouteAdd(route) },
		func() error { return netlink.RuleAdd(answers) },
		func() error { return netlink.RuleAdd(calls) },
	} {
		switch err := add(); {
		case err == nil:
			changed = true
		case f == rules.IPv6 && errors.Is(err, unix.EACCES): // switched off in this namespace
		case !errors.Is(err, unix.EEXIST):
			return changed, err
		}
	}
	return changed, nil
}

func hasReturn(f rules.Family) (bool, error) {
	found, err := ourRules(f)
	return len(found) > 0, err
}

func ourRules(f rules.Family) ([]netlink.Rule, error) {
	all, err := netlink.RuleList(netlinkFamily(f))
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	return slices.DeleteFunc(all, func(r netlink.Rule) bool { return r.Protocol != origin }), nil
}

func removeReturn(f rules.Family) error {
	found, err := ourRules(f)
	if err != nil {
		return err
	}
	for _, r := range found {
		r.Family = netlinkFamily(f)
		if err := netlink.RuleDel(&r); err != nil {
			return fmt.Errorf("delete routing rule: %w", err)
		}
	}
	filter := &netlink.Route{Table: table, Protocol: origin, Type: unix.RTN_LOCAL}
	routes, err := netlink.RouteListFiltered(netlinkFamily(f), filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("delete route: %w", err)
		}
	}
	return nil
}

// Addresses are those of every interface in a pod's namespace.
func Addresses(ns *netns.NS) (have []netip.Addr, err error) {
	err = ns.Do(func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				have = append(have, addr.Unmap())
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("addresses in the pod's namespace: %w", err)
	}
	return have, nil
}

// checkAddresses makes sure that a namespace holds the addresses of the pod
// that it is said to be. The gap names others, by which the pod can be reached
// but is not known.
func checkAddresses(ns *netns.NS, want []netip.Addr) (gap string, err error) {
	have, err := Addresses(ns)
	if err != nil {
		return "", err
	}
	if len(want) == 0 {
		return "", errors.New("the pod has no address yet")
	}
	for _, a := range want {
		if a.IsLoopback() || !slices.Contains(have, a) {
			return "", fmt.Errorf("its network namespace does not hold the pod's address %v (it holds %v)", a, have)
		}
	}
	var others []string
	for _, a := range have {
		if a.IsGlobalUnicast() && !slices.Contains(want, a) {
			others = append(others, a.String())
		}
	}
	if others != nil {
		gap = "further addresses: " + strings.Join(others, ", ")
	}
	return gap, nil
}

// Connection tracking forgets half-closed connections so soon that a silent
// one would break. The value says by itself that it is ours.
const halfClosedTimeout = "43267" // s, 12 h

func halfClosedTimeouts() map[string]string {
	const base = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"
	return map[string]string{base + "close_wait": "60", base + "fin_wait": "120"} // the kernel's own values
}

// keepHalfClosed changes the kernel's own values alone: what an administrator
// has set stays. Where they cannot be written, keepalive has to do.
func keepHalfClosed() (changed bool, err error) {
	return replaceSettings(func(own string) (from, to string) { return own, halfClosedTimeout })
}

func forgetHalfClosed() (changed bool, err error) {
	return replaceSettings(func(own string) (from, to string) { return halfClosedTimeout, own })
}

func replaceSettings(change func(own string) (from, to string)) (changed bool, err error) {
	for path, own := range halfClosedTimeouts() {
		from, to := change(own)
		value, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(value)) != from {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(to), 0)
		}
		switch {
		case err == nil:
			changed = true
		case !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EROFS):
			return changed, fmt.Errorf("conntrack timeout: %w", err)
		}
	}
	return changed, nil
}

// The states of TCP after which conntrack only remembers
// (linux/netfilter/nf_conntrack_tcp.h).
const (
	tcpTimeWait = 7
	tcpClose    = 8
)

// connections counts those that live and need what is left of the capture:
// they came by way of it, or have their client's port translated, as another
// connection had it that came by way of it.
func (p *place) connections(addresses []netip.Addr) (n int, err error) {
	err = p.ns.Do(func() error {
		for _, f := range families() {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(netlinkFamily(f)))
			if errors.Is(err, netlink.ErrDumpInterrupted) { // it may have missed some
				n++
			} else if err != nil {
				return fmt.Errorf("list connections: %w", err)
			}
			for _, flow := range flows {
				if !isOver(flow) && (isCaptured(flow, addresses) || flow.Reverse.DstPort != flow.Forward.SrcPort) {
					n++
				}
			}
		}
		return nil
	})
	return n, err
}

// isOver reports whether a flow is no connection, or none anymore.
func isOver(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return f.Forward.Protocol != unix.IPPROTO_TCP || ok && (tcp.State == tcpTimeWait || tcp.State == tcpClose)
}

// ended are captured connections that connection tracking only remembers.
type ended []netip.Addr

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (addresses ended) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_TCP && isOver(f) && isCaptured(f, addresses)
}

// forgetEnded makes connection tracking forget them: a new connection from the
// same address and port would be translated for their sake, and break when the
// kernel stops translating.
func (p *place) forgetEnded(addresses []netip.Addr) error {
	return p.forget(ended(addresses), "ended connections")
}

// queries are those for DNS that are redirected, and what comes after them from
// the same port: some resolvers ask from one for ever.
type queries struct{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (queries) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_UDP && f.Reverse.SrcPort == protocol.DNSPort && f.Forward.DstPort != protocol.DNSPort
}

// forgetQueries lets the pod's further queries go where they are sent.
func (p *place) forgetQueries() error { return p.forget(queries{}, "DNS queries") }

func (p *place) forget(which netlink.CustomConntrackFilter, name string) error {
	return p.ns.Do(func() error {
		for _, f := range families() {
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(netlinkFamily(f)), which)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return fmt.Errorf("forget %s: %w", name, err)
			}
		}
		return nil
	})
}

func isCaptured(f *netlink.ConntrackFlow, addresses []netip.Addr) bool {
	dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
	answeredBy := f.Reverse.SrcPort
	switch {
	case f.Mark&markMask == connMark: // the proxy's to an application
		return true
	case answeredBy != f.Forward.DstPort &&
		(answeredBy == protocol.OutboundPort || answeredBy == protocol.PlaintextPort || answeredBy == protocol.DNSPort):
		return true
	}
	return f.Forward.DstPort == protocol.HBONEPort && slices.Contains(addresses, dst.Unmap())
}
