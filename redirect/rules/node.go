package rules

import (
	"fmt"
	"net/netip"
	"slices"
)

// postRouting is our chain in the node's own network namespace.
const postRouting = Prefix + "POSTROUTING"

// ProbeSource is the address from which a pod sees the node's probes come
// (Istio ambient's numbers). Nobody has it, so that what comes from it has
// passed the node's own rules.
func ProbeSource(f Family) netip.Addr {
	if f == IPv4 {
		return netip.AddrFrom4([4]byte{169, 254, 7, 127})
	}
	return netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
}

// Node is what the node's own network namespace does for probes: sockets of
// the node itself reach the targets from ProbeSource.
type Node struct {
	Targets []netip.AddrPort
	// Kept are rules that [Saved.Probes] found and that stay for now.
	Kept map[Family][]string
}

// Tables are the rules for one family; none if there is nothing to probe.
func (n Node) Tables(f Family) []Table {
	source := ProbeSource(f)
	probes := slices.Clone(n.Kept[f])
	for _, t := range n.Targets {
		if t.Addr().Is4() != (f == IPv4) {
			continue
		}
		rule := fmt.Sprintf("-d %v -p tcp -m tcp --dport %d -m owner --socket-exists -j SNAT --to-source %v", host(t.Addr()), t.Port(), source)
		if !slices.Contains(probes, rule) {
			probes = append(probes, rule)
		}
	}
	if len(probes) == 0 {
		return nil
	}
	// What the node sends itself never arrives: it would be forged.
	forged := []string{fmt.Sprintf("-s %v -j DROP", host(source))}
	return []Table{
		{"raw", []Chain{{preRouting, "PREROUTING", forged}}},
		{"nat", []Chain{{postRouting, "POSTROUTING", probes}}},
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Probes are the rules that an agent has put in place for Node.
func (s Saved) Probes() []string {
	var rules []string
	for _, r := range s["nat"][postRouting] {
		rules = append(rules, r.Text)
	}
	return rules
}
