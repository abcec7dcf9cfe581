package admin

import (
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// A policy is shown with the names that its attributes have in an
// AuthorizationPolicy, in the three levels of the wire format: any rule, all
// of its clauses, any match of each.
type policyDump struct {
	Key     string     `json:"key"`
	Scope   string     `json:"scope"`
	Action  string     `json:"action"`
	DryRun  bool       `json:"dryRun,omitempty"`
	Unknown string     `json:"unknown,omitempty"`
	Rules   []ruleDump `json:"rules"`
}

type ruleDump struct {
	Unknown string       `json:"unknown,omitempty"`
	Clauses []clauseDump `json:"clauses"`
}

type clauseDump struct {
	Unknown string           `json:"unknown,omitempty"`
	Matches []map[string]any `json:"matches"`
}

func dumpPolicy(p *model.Policy) any {
	d := policyDump{Key: p.Key(), Scope: "unknown", Action: "unknown", DryRun: p.DryRun, Unknown: p.Unknown, Rules: []ruleDump{}}
	switch p.Scope {
	case model.ScopeGlobal:
		d.Scope = "mesh"
	case model.ScopeNamespace:
		d.Scope = "namespace"
	case model.ScopeSelector:
		d.Scope = "workload"
	}
	switch p.Action {
	case model.ActionAllow:
		d.Action = "ALLOW"
	case model.ActionDeny:
		d.Action = "DENY"
	}
	for i := range p.Rules {
		d.Rules = append(d.Rules, dumpRule(&p.Rules[i]))
	}
	return d
}

func dumpRule(r *model.Rule) ruleDump {
	d := ruleDump{Unknown: r.Unknown, Clauses: []clauseDump{}}
	for _, c := range r.Clauses {
		clause := clauseDump{Unknown: c.Unknown, Matches: []map[string]any{}}
		for i := range c.Matches {
			clause.Matches = append(clause.Matches, dumpMatch(&c.Matches[i]))
		}
		d.Clauses = append(d.Clauses, clause)
	}
	return d
}

func dumpMatch(m *model.Match) map[string]any {
	d := map[string]any{}
	if m.Unknown != "" {
		d["unknown"] = m.Unknown
	}
	put(d, "namespaces", m.Namespaces, model.StringMatch.String)
	put(d, "notNamespaces", m.NotNamespaces, model.StringMatch.String)
	put(d, "principals", m.Principals, model.StringMatch.String)
	put(d, "notPrincipals", m.NotPrincipals, model.StringMatch.String)
	put(d, "serviceAccounts", m.ServiceAccounts, accountName)
	put(d, "notServiceAccounts", m.NotServiceAccounts, accountName)
	put(d, "ipBlocks", m.SourceIPs, netip.Prefix.String)
	put(d, "notIpBlocks", m.NotSourceIPs, netip.Prefix.String)
	put(d, "destination.ip", m.DestinationIPs, netip.Prefix.String)
	put(d, "destination.ip.notValues", m.NotDestinationIPs, netip.Prefix.String)
	put(d, "ports", m.DestinationPorts, portNumber)
	put(d, "notPorts", m.NotDestinationPorts, portNumber)
	put(d, "source.labels", m.SourceLabels, labels)
	put(d, "source.labels.notValues", m.NotSourceLabels, labels)
	put(d, "request.time", m.Times, window)
	put(d, "request.time.notValues", m.NotTimes, window)
	return d
}

func put[T, U any](d map[string]any, name string, values []T, shown func(T) U) {
	if len(values) == 0 {
		return
	}
	out := make([]U, 0, len(values))
	for _, v := range values {
		out = append(out, shown(v))
	}
	d[name] = out
}

func accountName(a model.ServiceAccount) string { return a.Namespace + "/" + a.Name }

func portNumber(p uint16) uint16 { return p }

type labelDump struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

func labels(l model.LabelMatch) labelDump {
	d := labelDump{Key: l.Key, Values: []string{}}
	for _, v := range l.Values {
		d.Values = append(d.Values, v.String())
	}
	return d
}

func window(w model.TimeWindow) string { return clock(w.First) + "-" + clock(w.Last) }

func clock(d time.Duration) string { return time.Time{}.Add(d).Format(time.TimeOnly) }
