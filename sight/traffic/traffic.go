// Package traffic sums up what the proxies of several nodes have counted: who
// talks to whom, how much of it is mutual TLS, and what no policy covers.
//
// What does not belong here: asking proxies (cmd/tacit), and how sums are shown
// to people (cmd/tacit/show).
package traffic

import (
	"cmp"
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
)

// Key is what pairs are told apart by, whichever node counted.
type Key struct {
	Source      flows.Party `json:"source"`
	Destination flows.Party `json:"destination"`
	// Security is "mtls", "plain", "skipped" or "passthrough": local
	// connections are authorized over mTLS.
	Security string `json:"security"`
	Why      string `json:"why,omitempty"`
}

// Pair is who talks to whom, and how.
type Pair struct {
	Key
	flows.Counts
}

// Carried are the connections that carried bytes.
func (p *Pair) Carried() uint64 { return p.Connections + p.Live }

// Merge joins what nodes have counted. A connection between two captured pods
// is counted by the nodes of both, so the side that has counted more counts:
// the other's node may have started later, or gives no answer.
func Merge(nodes []admin.Coverage) []Pair {
	type sides struct{ inbound, outbound flows.Counts }
	all := map[Key]*sides{}
	for _, n := range nodes {
		for _, p := range n.Pairs {
			key := Key{p.Source, p.Destination, security(p.Security), p.Why}
			s := all[key]
			if s == nil {
				s = &sides{}
				all[key] = s
			}
			if p.Direction == "inbound" {
				s.inbound.Add(&p.Counts)
			} else {
				s.outbound.Add(&p.Counts)
			}
		}
	}
	out := make([]Pair, 0, len(all))
	for key, s := range all {
		more := s.inbound
		if weight(&s.outbound) > weight(&s.inbound) {
			more = s.outbound
		}
		out = append(out, Pair{key, more})
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(cmp.Compare(weight(&b.Counts), weight(&a.Counts)), strings.Compare(a.text(), b.text()))
	})
	return out
}

// weight is how much a side knows of a pair. Requests are known to the
// server's node alone and so must not be outweighed.
func weight(c *flows.Counts) uint64 { return c.Connections + c.Live + c.Requests + c.Denied + c.Failed }

func security(s string) string {
	if s == "local" {
		return "mtls"
	}
	return s
}

func (k Key) text() string {
	return strings.Join([]string{k.Source.Namespace, k.Source.Name, k.Destination.Namespace, k.Destination.Name, k.Security, k.Why}, "\x00")
}
