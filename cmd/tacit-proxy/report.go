package main

import (
	"cmp"
	"crypto/x509"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/sight/report"
)

// reporter tells tacitd what this proxy sees, where tacitd wants to know.
func (p *process) reporter() *report.Reporter {
	return &report.Reporter{
		Server: caclient.Config{Address: cmp.Or(p.report, p.options.xds), ServerName: p.serverName, RootsFile: p.root, TokenFile: p.token},
		Flows:  p.flows, Live: p.proxy.LiveFlows, Certificates: p.certificateViews, Roots: p.judges, Log: p.log,
	}
}

// judges are the roots by which tacitd is known, and then those by which each
// identity judges peers. A file that cannot be read holds none.
func (p *process) judges() [][]*x509.Certificate {
	roots, _ := caclient.Roots(p.root)
	sets := [][]*x509.Certificate{roots}
	for _, s := range p.store.All() {
		if s.Leaf != nil {
			sets = append(sets, s.Authorities)
		}
	}
	return sets
}
