package check

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/xds/model"
)

// judge is the roots of a trust domain that proxies of a node go by.
type judge struct {
	node, domain string
	roots        []*x509.Certificate
}

// chains verifies each certificate as the proxies of every node would: its
// chain, its name and what its key may be used for.
func (s *state) chains(nodes map[string][]admin.Certificate) {
	var judges []judge
	seen := map[string]bool{}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		for _, c := range nodes[node] {
			id, err := model.ParseIdentity(c.Identity)
			key := id.TrustDomain + fmt.Sprintf("%x", c.Roots)
			if err != nil || len(c.Roots) == 0 || seen[key] {
				continue
			}
			seen[key] = true
			if roots, err := parse(c.Roots); err == nil {
				judges = append(judges, judge{node, id.TrustDomain, roots})
			}
		}
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		for _, c := range nodes[node] {
			s.chain(node, c, judges)
		}
	}
}

func (s *state) chain(node string, c admin.Certificate, judges []judge) {
	if len(c.Chain) == 0 || !s.now().Before(c.NotAfter) {
		return // held says so, or the proxy is of a version that shows none
	}
	const do = "see who issued it (tacit certs), and whether its CA, or SPIRE's entry, is as it should be; if nodes have different roots, one of them has not heard of a new one"
	id, err := model.ParseIdentity(c.Identity)
	var chain []*x509.Certificate
	if err == nil {
		chain, err = parse(c.Chain)
	}
	if err != nil {
		s.add(Broken, "Certificates", node, fmt.Sprintf("that of %s cannot be read: %v", c.Identity, err), do)
		return
	}
	for _, j := range judges {
		if j.domain != id.TrustDomain {
			continue
		}
		if err := identity.CheckChain(chain, j.roots, id, s.now()); err != nil {
			s.add(Broken, "Certificates", node, fmt.Sprintf("that of %s is refused on node %s: %v", c.Identity, j.node, err), do)
			return
		}
	}
}

func parse(ders [][]byte) (all []*x509.Certificate, err error) {
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
