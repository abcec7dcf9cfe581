package dns

import (
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/google/go-cmp/cmp"
)

// records are the answer's, as "NAME TYPE VALUE", sorted but for the first
// ones, of which each is the way to the next.
func records(m *mdns.Msg) (out []string) {
	for _, r := range m.Answer {
		h := r.Header()
		out = append(out, h.Name+" "+mdns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(r.String(), h.String()))
	}
	slices.Sort(out)
	return out
}

// Every rule by which a name leads to addresses, or to somebody else.
func TestAnswers(t *testing.T) {
	const forwarded = "forwarded"
	up := newUpstream(t, says(t))
	p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
	for name, tt := range map[string]struct {
		name string
		kind uint16
		want []string
	}{
		"the full name":                   {"web.mine.svc.cluster.local.", mdns.TypeA, []string{"web.mine.svc.cluster.local. A 10.0.0.1"}},
		"the other family":                {"web.mine.svc.cluster.local.", mdns.TypeAAAA, []string{"web.mine.svc.cluster.local. AAAA fd00::1"}},
		"in capitals":                     {"WEB.mine.SVC.cluster.local.", mdns.TypeA, []string{"WEB.mine.SVC.cluster.local. A 10.0.0.1"}},
		"the name alone":                  {"web.", mdns.TypeA, []string{"web. A 10.0.0.1"}},
		"with a namespace":                {"four.other.", mdns.TypeA, []string{"four.other. A 10.0.0.2"}},
		"with svc":                        {"four.other.svc.", mdns.TypeA, []string{"four.other.svc. A 10.0.0.2"}},
		"the name alone, elsewhere":       {"four.", mdns.TypeA, []string{forwarded}},
		"by a search domain, namespace":   {"four.other.mine.svc.cluster.local.", mdns.TypeA, []string{"four.other. A 10.0.0.2", "four.other.mine.svc.cluster.local. CNAME four.other."}},
		"by a search domain, svc":         {"shop.example.com.svc.cluster.local.", mdns.TypeA, []string{"shop.example.com. A 10.0.1.5", "shop.example.com.svc.cluster.local. CNAME shop.example.com."}},
		"by a search domain, cluster":     {"shop.example.com.cluster.local.", mdns.TypeA, []string{"shop.example.com. A 10.0.1.5", "shop.example.com.cluster.local. CNAME shop.example.com."}},
		"another pod's search domain":     {"shop.example.com.other.svc.cluster.local.", mdns.TypeA, []string{forwarded}},
		"a wildcard":                      {"a.b.wild.example.com.", mdns.TypeA, []string{"a.b.wild.example.com. A 10.0.1.6"}},
		"a wildcard by a search domain":   {"a.wild.example.com.mine.svc.cluster.local.", mdns.TypeA, []string{"a.wild.example.com.mine.svc.cluster.local. A 10.0.1.6"}},
		"what a wildcard is for":          {"wild.example.com.", mdns.TypeA, []string{forwarded}},
		"no address of the family":        {"four.other.svc.cluster.local.", mdns.TypeAAAA, nil},
		"no IPv4":                         {"six.other.svc.cluster.local.", mdns.TypeA, nil},
		"addresses of another network":    {"far.mine.svc.cluster.local.", mdns.TypeA, nil},
		"for another namespace":           {"private.other.svc.cluster.local.", mdns.TypeA, []string{forwarded}},
		"two, one in the namespace":       {"both.example.com.", mdns.TypeA, []string{"both.example.com. A 10.0.1.3"}},
		"two, one the cluster's own":      {"twice.example.com.", mdns.TypeA, []string{"twice.example.com. A 10.0.1.2"}},
		"a range beside an address":       {"wide.example.com.", mdns.TypeA, []string{"wide.example.com. A 10.5.0.1"}},
		"nothing but a range":             {"cidr.example.com.", mdns.TypeA, []string{forwarded}},
		"outside without an address":      {"none.example.com.", mdns.TypeA, []string{forwarded}},
		"headless":                        {"headless.", mdns.TypeA, []string{"headless. A 10.3.0.1", "headless. A 10.3.0.2"}},
		"headless, the other family":      {"headless.", mdns.TypeAAAA, []string{"headless. AAAA fd00:3::1"}},
		"headless, all of them":           {"all.", mdns.TypeA, []string{"all. A 10.3.0.5"}},
		"headless, no address of that":    {"all.", mdns.TypeAAAA, nil},
		"headless, without known members": {"empty.", mdns.TypeA, []string{forwarded}},
		"a host of a headless service":    {"one.headless.mine.svc.cluster.local.", mdns.TypeA, []string{forwarded}},
		"nobody's":                        {"www.example.org.", mdns.TypeA, []string{forwarded}},
		"the root":                        {".", mdns.TypeA, []string{forwarded}},
		"another type":                    {"web.mine.svc.cluster.local.", mdns.TypeSRV, []string{forwarded}},
		"any type":                        {"web.mine.svc.cluster.local.", mdns.TypeANY, []string{forwarded}},
		"an address's name":               {"1.0.0.10.in-addr.arpa.", mdns.TypePTR, []string{forwarded}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, network := range []string{"udp", "tcp"} {
				before := len(up.questions())
				got := p.ask(network, about(tt.name, tt.kind))
				have := records(got)
				if len(up.questions()) > before {
					have = append(have, forwarded)
				}
				if diff := cmp.Diff(tt.want, have); diff != "" {
					t.Errorf("by %s (-want +got):\n%s", network, diff)
				}
				if slices.Contains(tt.want, forwarded) {
					continue
				}
				if got.Rcode != mdns.RcodeSuccess || !got.Authoritative || !got.RecursionAvailable || !got.RecursionDesired || got.Truncated {
					t.Errorf("by %s: %v", network, got)
				}
				for _, r := range slices.Concat(got.Answer, got.Ns) {
					if r.Header().Ttl != ttl {
						t.Errorf("by %s: %v, want a life of %d s", network, r, ttl)
					}
				}
				if soa := len(got.Ns) == 1; soa != (len(tt.want) == 0) {
					t.Errorf("by %s: authority is %v; it tells how long nothing may be remembered", network, got.Ns)
				}
			}
		})
	}
}

func TestClassesAndOperationsOfOthersAreForwarded(t *testing.T) {
	up := newUpstream(t, says(t))
	p := newPod(t, mesh(), forwarderTo(t, up.addr.Port(), "127.0.0.1"))
	chaos := about("web.", mdns.TypeA)
	chaos.Question[0].Qclass = mdns.ClassCHAOS
	notify := about("web.", mdns.TypeA)
	notify.Opcode = mdns.OpcodeNotify
	for i, q := range []*mdns.Msg{chaos, notify} {
		p.ask("udp", q)
		if got := up.questions(); len(got) != i+1 || got[i].Opcode != q.Opcode || got[i].Question[0] != q.Question[0] {
			t.Errorf("%v was not forwarded: %v", q, got)
		}
	}
}

// Addresses come in any order.
func TestShuffled(t *testing.T) {
	p := newPod(t, mesh(), forwarderTo(t, 1, "127.0.0.1"))
	first := map[string]bool{}
	for range 200 {
		first[p.ask("udp", about("headless.", mdns.TypeA)).Answer[0].String()] = true
	}
	if len(first) != 2 {
		t.Errorf("first of 200 answers was %v, want each of two", first)
	}
}
