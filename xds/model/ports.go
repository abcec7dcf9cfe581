package model

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// PortRange is an inclusive range of TCP ports, 1 to 65535.
type PortRange struct{ First, Last uint16 }

// PortSet is a list of port ranges, in the order they were written.
type PortSet []PortRange

// ParsePorts reads a skip list: ports and ranges, separated by commas, such
// as "5432,6379,9000-9100". Blanks around an item are allowed; an empty
// string is an empty set.
func ParsePorts(s string) (PortSet, error) {
	var set PortSet
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		lo, hi, isRange := strings.Cut(item, "-")
		if !isRange {
			hi = lo
		}
		first, err1 := parsePort(lo)
		last, err2 := parsePort(hi)
		if err1 != nil || err2 != nil || first > last {
			return nil, fmt.Errorf("port list %q: %q is not a port (1-65535) or a range FIRST-LAST", s, item)
		}
		set = append(set, PortRange{first, last})
	}
	return set, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("not a port: %q", s)
	}
	return uint16(n), nil
}

// Contains reports whether the set covers port.
func (s PortSet) Contains(port uint16) bool {
	for _, r := range s {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// String is the form that ParsePorts reads.
func (s PortSet) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(r.First)))
		if r.Last != r.First {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(r.Last)))
		}
	}
	return b.String()
}

// ParseCIDRs reads a comma-separated list of prefixes or single addresses.
// The prefixes are masked: "10.0.0.1/8" is 10.0.0.0/8.
func ParseCIDRs(s string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		p, err := ParseCIDR(strings.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("CIDR list %q: %w", s, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// ParseCIDR reads a prefix, or an address as the prefix of its full length.
func ParseCIDR(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an address or a CIDR", s)
	}
	return p.Masked(), nil
}
