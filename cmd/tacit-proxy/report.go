package main

import (
	"cmp"
	"crypto/x509"

	"go.uber.org/zap"

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
// identity judges peers. A file that cannot be read holds none, and the log is
// told why.
func (p *process) judges() [][]*x509.Certificate {
	roots, err := caclient.Roots(p.root)
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if last, _ := p.rootProblem.Swap(problem).(string); err != nil && problem != last {
		p.log.Warn("the file of --root: tacitd can be reached by no new connection until it can be read", zap.Error(err))
	}
	sets := [][]*x509.Certificate{roots}
	for _, s := range p.store.All() {
		if s.Leaf != nil {
			sets = append(sets, s.Authorities)
		}
	}
	return sets
}
