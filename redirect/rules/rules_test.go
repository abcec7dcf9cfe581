package rules

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

func base() Config {
	return Config{OutboundPort: 15001, PlaintextPort: 15006, HBONEPort: 15008, Mark: 0x539, ConnMark: 0x111, Mask: 0xfff, Zone: 0x7ac}
}

func skipping() Config {
	c := base()
	c.Probes = model.PortSet{{First: 8080, Last: 8080}}
	c.SkipInbound = model.PortSet{{First: 5432, Last: 5432}, {First: 9000, Last: 9100}}
	c.SkipOutbound = model.PortSet{{First: 6379, Last: 6379}}
	c.SkipOutboundCIDRs = []netip.Prefix{netip.MustParsePrefix("198.18.9.0/24"), netip.MustParsePrefix("fd00:7ac1:9::/48")}
	return c
}

func resolving() Config {
	c := base()
	c.DNSPort = 15053
	c.DNSServers = []netip.Addr{netip.MustParseAddr("198.18.0.10"), netip.MustParseAddr("fd00:7ac1::10"), netip.MustParseAddr("198.18.9.10")}
	c.SkipOutboundCIDRs = []netip.Prefix{netip.MustParsePrefix("198.18.9.0/24")}
	return c
}

func node() Node {
	return Node{
		Targets: []netip.AddrPort{netip.MustParseAddrPort("198.18.1.1:8080"), netip.MustParseAddrPort("[fd00:7ac1::1]:8080")},
		Kept:    map[Family][]string{IPv4: {"-d 198.18.1.2/32 -j SNAT --to-source 169.254.7.127"}},
	}
}

// A later agent finds what an earlier one has put in place, and nothing is
// left to put in place where there is nothing to probe.
func TestNodeReadsBack(t *testing.T) {
	want := node().Tables(IPv4)
	found := ParseSave(Restore(want, Saved{})).Probes()
	if diff := cmp.Diff(want, Node{Targets: node().Targets, Kept: map[Family][]string{IPv4: found}}.Tables(IPv4)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := (Node{Targets: node().Targets[:1]}).Tables(IPv6); got != nil {
		t.Errorf("without IPv6 targets: %v", got)
	}
}

func released() Config {
	c := skipping()
	c.Released = true
	return c
}

func everywhere() Config {
	c := base()
	c.SkipOutboundCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	return c
}

// foreign is a pod with rules of its own, and nat rules of ours: a jump too
// many, one too few, a strange one, and a chain of another version.
const foreign = `*nat
:PREROUTING ACCEPT [1:2]
:OUTPUT ACCEPT [3:4]
:DOCKER_OUTPUT - [0:0]
:TACIT_OLD - [0:0]
:TACIT_OUTPUT - [0:0]
[5:6] -A OUTPUT -p tcp -j TACIT_OLD
[5:6] -A OUTPUT -j TACIT_OUTPUT
[5:6] -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
[5:6] -A OUTPUT -j TACIT_OUTPUT
[7:8] -A DOCKER_OUTPUT -p udp -j DNAT --to-destination 127.0.0.11:4000
[2:2] -A TACIT_OLD -p tcp -j ACCEPT
[9:1] -A TACIT_OUTPUT ! -p tcp -j RETURN
COMMIT
`

func TestGolden(t *testing.T) {
	for name, got := range map[string]string{
		"fresh.v4":      Restore(base().Tables(IPv4), Saved{}),
		"fresh.v6":      Restore(base().Tables(IPv6), Saved{}),
		"skips.v4":      Restore(skipping().Tables(IPv4), ParseSave(foreign)),
		"skips.v6":      Restore(skipping().Tables(IPv6), Saved{}),
		"everywhere.v4": Restore(everywhere().Tables(IPv4), Saved{}),
		"released.v4":   Restore(released().Tables(IPv4), ParseSave(foreign)),
		"dns.v4":        Restore(resolving().Tables(IPv4), Saved{}),
		"dns.v6":        Restore(resolving().Tables(IPv6), Saved{}),
		"node.v4":       Restore(node().Tables(IPv4), Saved{}),
		"node.v6":       Restore(node().Tables(IPv6), Saved{}),
		"remove":        Remove(ParseSave(foreign)),
		"canonical.v4":  Canonical(skipping().Tables(IPv4)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// The two rules without which live connections are cut or looped.
func TestEveryRedirectTakesFirstPacketsOnly(t *testing.T) {
	for _, c := range []Config{base(), skipping(), released(), everywhere(), resolving()} {
		for _, f := range []Family{IPv4, IPv6} {
			for line := range strings.Lines(Canonical(c.Tables(f))) {
				if strings.Contains(line, "REDIRECT") && !strings.Contains(line, "--tcp-flags FIN,SYN,RST,ACK SYN") && !strings.Contains(line, "-p udp") {
					t.Errorf("%q redirects the middle of connections", line)
				}
				if strings.Contains(line, "REDIRECT") && c.Released {
					t.Errorf("%q captures after the release", line)
				}
			}
		}
	}
}

func TestSkipsComeBeforeRedirects(t *testing.T) {
	for _, chain := range skipping().Tables(IPv4)[2].Chains {
		last := len(chain.Rules) - 1
		for i, r := range chain.Rules {
			if strings.HasSuffix(r, "-j RETURN") != (i != last) {
				t.Errorf("%s: rule %d of %d is %q", chain.Name, i, last, r)
			}
		}
	}
}

// Whoever skips all connections to a port or server skips queries, too.
func TestSkippedQueries(t *testing.T) {
	c := resolving()
	c.SkipOutbound = model.PortSet{{First: 50, Last: 60}}
	for _, f := range []Family{IPv4, IPv6} {
		if text := Canonical(c.Tables(f)); strings.Contains(text, "15053") {
			t.Errorf("captured in spite of a skip:\n%s", text)
		}
	}
}

func TestSavedReadsBack(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		want := skipping().Tables(f)
		text := Restore(want, Saved{})
		text = strings.ReplaceAll(text, "-I PREROUTING 1 ", "-A PREROUTING ")
		text = strings.ReplaceAll(text, "-I OUTPUT 1 ", "-A OUTPUT ")
		got := ParseSave(text)
		if diff := cmp.Diff(Canonical(want), got.Ours()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if diff := cmp.Diff([]string{"mangle", "nat", "raw"}, got.MadeByUs()); diff != "" {
			t.Errorf("tables made by us (-want +got):\n%s", diff)
		}
	}
	saved := ParseSave(foreign)
	if got := saved.Uncaptured(); got != 9 {
		t.Errorf("%d uncaptured flows, want 9", got)
	}
	if got := saved.MadeByUs(); got != nil {
		t.Errorf("tables made by us: %v, but others use them", got)
	}
}

func FuzzParseSave(f *testing.F) {
	f.Add(foreign)
	f.Add("*nat\n[] -A\n-A \n:\n[x] -A X -j\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := ParseSave(text)
		s.Ours()
		s.MadeByUs()
		s.Uncaptured()
		Restore(base().Tables(IPv4), s)
		if s.HasOurs() && Remove(s) == "" {
			t.Error("rules of ours that Remove does not see")
		}
	})
}
