// Package rules says, as text for iptables-restore, what captures a pod's
// traffic inside the pod's network namespace.
//
// Everything is pure: what is wanted and what iptables-save printed go in,
// text comes out. What does not belong here: running anything.
package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Prefix begins the name of every chain that is ours.
const Prefix = "TACIT_"

const (
	preRouting = Prefix + "PREROUTING"
	output     = Prefix + "OUTPUT"
	// made is an empty chain that says that the table is there because of
	// us alone.
	made = Prefix + "MADE"
)

// Family is the half of the rules that one iptables binary handles.
type Family uint8

// The families, by their numbers in names and protocols.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Config is what to capture. Marks are compared under Mask.
type Config struct {
	OutboundPort  uint16 // where what the pod sends is redirected to
	PlaintextPort uint16 // where what the pod receives is redirected to
	HBONEPort     uint16 // where peers connect to the proxy itself
	DNSPort       uint16 // where queries to DNSServers are redirected to

	Mark     uint32 // on packets of the proxy's own sockets
	ConnMark uint32 // on the proxy's connections to the pod's applications
	Mask     uint32
	Zone     uint16 // of conntrack, for what the proxy's sockets begin

	// Probes are the ports that ProbeSource reaches past the proxy.
	Probes            model.PortSet
	SkipInbound       model.PortSet
	SkipOutbound      model.PortSet
	SkipOutboundCIDRs []netip.Prefix
	DNSServers        []netip.Addr // none: no queries are captured

	// Released captures nothing new and keeps what is captured alive.
	Released bool
}

// Table is our part of one table.
type Table struct {
	Name   string
	Chains []Chain
}

// Chain is a chain of ours, at the head of a built-in one. Its rules are
// written as iptables-save prints them, without "-A NAME".
type Chain struct {
	Name  string
	Hook  string
	Rules []string
}

// Tables are the rules for one family, in the order in which they are put
// in place.
func (c Config) Tables(f Family) []Table {
	nat := Table{"nat", []Chain{{preRouting, "PREROUTING", c.inbound(f)}, {output, "OUTPUT", c.outbound(f)}}}
	if c.Released {
		// Without a rule that needs connection tracking the kernel turns it
		// off, and translated connections break.
		anchor := []string{"-m conntrack --ctstate DNAT -j RETURN"}
		nat.Chains[0].Rules, nat.Chains[1].Rules = anchor, anchor
	}
	return []Table{c.apart(), c.replies(), nat}
}

// apart is the raw table: a connection of the proxy to an application may have
// the very addresses and ports of the client's own, redirected one. Connection
// tracking must not take the one for the other. What comes back is told apart
// by the redirection already, and belongs to no zone.
func (c Config) apart() Table {
	return Table{"raw", []Chain{
		{output, "OUTPUT", []string{
			fmt.Sprintf("-p tcp -m mark --mark 0x%x/0x%x -j CT --zone-orig %d", c.Mark, c.Mask, c.Zone),
		}},
	}}
}

// replies is the mangle table: the proxy reaches an application from the
// client's own address. Connections made so are marked when they come out of
// the loopback device; what the application answers gets the mark, by which a
// routing rule brings it back to the proxy's socket in the pod.
func (c Config) replies() Table {
	return Table{"mangle", []Chain{
		{preRouting, "PREROUTING", []string{
			fmt.Sprintf("-i lo -p tcp -m mark --mark 0x%x/0x%x -j CONNMARK --set-xmark 0x%x/0x%x", c.Mark, c.Mask, c.ConnMark, c.Mask),
		}},
		{output, "OUTPUT", []string{
			fmt.Sprintf("-p tcp -m connmark --mark 0x%x/0x%x -j CONNMARK --restore-mark --nfmask 0x%x --ctmask 0x%x", c.ConnMark, c.Mask, c.Mask, c.Mask),
		}},
	}}
}

// notTCP counts what passes uncaptured: one for each flow, as the nat table
// sees only the first packet of one.
const notTCP = "! -p tcp -j RETURN"

// inbound is what a packet from outside passes. One that comes out of the
// loopback device has passed outbound already. No mark exempts here: a mark
// does not cross into another namespace.
func (c Config) inbound(f Family) []string {
	rules := []string{
		"-i lo -j RETURN",
		notTCP,
		fmt.Sprintf("-p tcp -m tcp --dport %d -j RETURN", c.HBONEPort),
	}
	rules = append(rules, returnPorts(fmt.Sprintf("-s %v -p tcp", host(ProbeSource(f))), c.Probes)...)
	rules = append(rules, returnPorts("-p tcp", c.SkipInbound)...)
	return append(rules, redirect(c.PlaintextPort))
}

// outbound is what a packet of the pod passes. What goes to the pod itself,
// by any of its addresses, leaves through the loopback device.
func (c Config) outbound(f Family) []string {
	rules := []string{
		"-o lo -j RETURN",
		fmt.Sprintf("-m mark --mark 0x%x/0x%x -j RETURN", c.Mark, c.Mask),
	}
	rules = append(rules, c.queries(f)...)
	rules = append(rules, notTCP)
	rules = append(rules, returnPorts("-p tcp", c.SkipOutbound)...)
	for _, p := range c.SkipOutboundCIDRs {
		switch {
		case p.Addr().Is4() != (f == IPv4):
		case p.Bits() == 0:
			rules = append(rules, "-p tcp -j RETURN")
		default:
			rules = append(rules, fmt.Sprintf("-d %v -p tcp -j RETURN", p))
		}
	}
	return append(rules, redirect(c.OutboundPort))
}

// dnsPort is where servers of DNS take queries.
const dnsPort = 53

// queries redirects those to the cluster's servers, unless they are skipped. A
// server of the pod's own choice is left alone.
func (c Config) queries(f Family) (rules []string) {
	for _, server := range c.DNSServers {
		skipped := c.SkipOutbound.Contains(dnsPort) ||
			slices.ContainsFunc(c.SkipOutboundCIDRs, func(p netip.Prefix) bool { return p.Contains(server) })
		if server.Is4() != (f == IPv4) || skipped {
			continue
		}
		to := fmt.Sprintf("-d %v -p ", host(server))
		rules = append(rules,
			to+fmt.Sprintf("udp -m udp --dport %d -j REDIRECT --to-ports %d", dnsPort, c.DNSPort),
			to+fmt.Sprintf("tcp -m tcp --dport %d --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports %d", dnsPort, c.DNSPort))
	}
	return rules
}

// redirect takes connections from their first packet on. Connection tracking
// begins together with our rules and calls the middle of a live connection
// new, so that "new" alone would cut it.
func redirect(port uint16) string {
	return fmt.Sprintf("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports %d", port)
}

// returnPorts leaves alone what matches and goes to one of the ports.
func returnPorts(match string, ports model.PortSet) []string {
	var rules []string
	for _, r := range ports {
		port := fmt.Sprint(r.First)
		if r.Last != r.First {
			port += fmt.Sprintf(":%d", r.Last)
		}
		rules = append(rules, match+" -m tcp --dport "+port+" -j RETURN")
	}
	return rules
}

// Restore is the input of iptables-restore --noflush that brings what is
// there to what is wanted. Each table changes at once: there is no moment
// without rules. A table that is not there yet is noted as made by us.
func Restore(want []Table, have Saved) string {
	var b strings.Builder
	for _, t := range want {
		fmt.Fprintf(&b, "*%s\n", t.Name)
		if _, ok := have[t.Name]; !ok {
			fmt.Fprintf(&b, ":%s - [0:0]\n", made)
		}
		for _, c := range t.Chains { // declared means emptied
			fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name)
		}
		for _, c := range t.Chains {
			for _, r := range c.Rules {
				fmt.Fprintf(&b, "-A %s %s\n", c.Name, r)
			}
		}
		have[t.Name].hook(&b, t)
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// hook leaves one plain jump to each chain of ours, ahead of all else, without
// a moment of none, and takes away chains that an older version made.
func (t SavedTable) hook(b *strings.Builder, want Table) {
	hooked := map[string]bool{}
	for _, chain := range t.names() {
		jumps := t.jumps(chain)
		if c := want.hookedAt(chain); len(jumps) == 1 && jumps[0] == 0 && t[chain][0].Text == "-j "+c {
			hooked[c] = true
			continue
		}
		for _, i := range jumps {
			fmt.Fprintf(b, "-D %s %s\n", chain, t[chain][i].Text)
		}
	}
	for _, c := range want.Chains {
		if !hooked[c.Name] {
			fmt.Fprintf(b, "-I %s 1 -j %s\n", c.Hook, c.Name)
		}
	}
	old := slices.DeleteFunc(t.ours(), func(n string) bool { return n == made || want.has(n) })
	deleteChains(b, old)
}

// deleteChains empties all before it deletes one: they may lead to each other.
func deleteChains(b *strings.Builder, names []string) {
	for _, n := range names {
		fmt.Fprintf(b, "-F %s\n", n)
	}
	for _, n := range names {
		fmt.Fprintf(b, "-X %s\n", n)
	}
}

// hookedAt is our chain at the head of a built-in one, "" if there is none.
func (t Table) hookedAt(hook string) string {
	for _, c := range t.Chains {
		if c.Hook == hook {
			return c.Name
		}
	}
	return ""
}

func (t Table) has(name string) bool {
	return slices.ContainsFunc(t.Chains, func(c Chain) bool { return c.Name == name })
}

// Remove is the input of iptables-restore --noflush that takes away whatever
// is ours; empty if nothing is.
func Remove(have Saved) string {
	var b strings.Builder
	for _, name := range have.tables() {
		t := have[name]
		ours := t.ours()
		if len(ours) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", name)
		for _, chain := range t.names() {
			for _, i := range t.jumps(chain) {
				fmt.Fprintf(&b, "-D %s %s\n", chain, t[chain][i].Text)
			}
		}
		deleteChains(&b, ours)
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
