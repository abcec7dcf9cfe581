package main

import (
	"cmp"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/sight/report"
)

// reporter tells tacitd what this proxy sees, where tacitd wants to know.
func (p *process) reporter() *report.Reporter {
	return &report.Reporter{
		Server: caclient.Config{Address: cmp.Or(p.report, p.options.xds), ServerName: p.serverName, RootsFile: p.root, TokenFile: p.token},
		Flows:  p.flows, Live: p.proxy.LiveFlows, Certificates: p.certificateViews, Log: p.log,
	}
}
