package ztunnel

import (
	"net/netip"

	"github.com/tacit-mesh/tacit/xds/model"
)

type (
	policy struct {
		Name      string      `json:"name"`
		Namespace string      `json:"namespace"`
		Scope     string      `json:"scope"`
		Action    string      `json:"action"`
		Rules     [][][]match `json:"rules"`
		DryRun    bool        `json:"dryRun,omitempty"`
	}
	match struct {
		Namespaces          []map[string]any `json:"namespaces,omitempty"`
		NotNamespaces       []map[string]any `json:"notNamespaces,omitempty"`
		Principals          []map[string]any `json:"principals,omitempty"`
		NotPrincipals       []map[string]any `json:"notPrincipals,omitempty"`
		SourceIPs           []string         `json:"sourceIps,omitempty"`
		NotSourceIPs        []string         `json:"notSourceIps,omitempty"`
		DestinationIPs      []string         `json:"destinationIps,omitempty"`
		NotDestinationIPs   []string         `json:"notDestinationIps,omitempty"`
		DestinationPorts    []uint16         `json:"destinationPorts,omitempty"`
		NotDestinationPorts []uint16         `json:"notDestinationPorts,omitempty"`
		ServiceAccounts     []account        `json:"serviceAccounts,omitempty"`
		NotServiceAccounts  []account        `json:"notServiceAccounts,omitempty"`
	}
	account struct {
		Namespace      string `json:"namespace"`
		ServiceAccount string `json:"serviceAccount"`
	}
)

var policyScopes = map[model.PolicyScope]string{
	model.ScopeGlobal: "Global", model.ScopeNamespace: "Namespace", model.ScopeSelector: "WorkloadSelector",
}

// policyOf shows what ztunnel's dump has a place for; tacit dump has the rest.
func policyOf(p *model.Policy) policy {
	out := policy{Name: p.Name, Namespace: p.Namespace, Scope: policyScopes[p.Scope], Action: "Allow", Rules: [][][]match{}, DryRun: p.DryRun}
	if p.Action == model.ActionDeny {
		out.Action = "Deny"
	}
	for _, r := range p.Rules {
		rule := [][]match{}
		for _, c := range r.Clauses {
			clause := []match{}
			for i := range c.Matches {
				clause = append(clause, matchOf(&c.Matches[i]))
			}
			rule = append(rule, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func matchOf(m *model.Match) match {
	return match{
		Namespaces: stringMatches(m.Namespaces), NotNamespaces: stringMatches(m.NotNamespaces),
		Principals: stringMatches(m.Principals), NotPrincipals: stringMatches(m.NotPrincipals),
		SourceIPs: prefixes(m.SourceIPs), NotSourceIPs: prefixes(m.NotSourceIPs),
		DestinationIPs: prefixes(m.DestinationIPs), NotDestinationIPs: prefixes(m.NotDestinationIPs),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
		ServiceAccounts: accounts(m.ServiceAccounts), NotServiceAccounts: accounts(m.NotServiceAccounts),
	}
}

func stringMatches(list []model.StringMatch) (out []map[string]any) {
	for _, m := range list {
		switch m.Kind {
		case model.MatchPrefix:
			out = append(out, map[string]any{"Prefix": m.Value})
		case model.MatchSuffix:
			out = append(out, map[string]any{"Suffix": m.Value})
		case model.MatchPresence:
			out = append(out, map[string]any{"Presence": map[string]any{}})
		default:
			out = append(out, map[string]any{"Exact": m.String()})
		}
	}
	return out
}

func prefixes(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

func accounts(list []model.ServiceAccount) (out []account) {
	for _, a := range list {
		out = append(out, account{a.Namespace, a.Name})
	}
	return out
}
