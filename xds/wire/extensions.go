package wire

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// ExtensionsKey is the key in an xDS node's metadata under which a proxy says
// which extensions it understands, in the form of [Extensions]. By sending it,
// whatever it holds, a proxy says that a policy with an extension that it does
// not understand errs on the closed side there.
const ExtensionsKey = "TACIT_EXTENSIONS"

// The names of our extensions. That of HTTP stands both in policies and in
// matches.
const (
	workloadExtension = "tacit.mesh/workload"
	serviceExtension  = "tacit.mesh/service"
	policyExtension   = "tacit.mesh/policy"
	matchExtension    = "tacit.mesh/match"
	httpExtension     = "tacit.mesh/http"
)

// versions are those that this version understands. One is raised when a
// message gains a field that an older proxy must not miss.
func versions() map[string]int {
	return map[string]int{workloadExtension: 1, serviceExtension: 1, policyExtension: 1, matchExtension: 1, httpExtension: 1}
}

// Extensions lists the extensions that this version understands, each as
// NAME=VERSION, separated by commas and sorted.
func Extensions() string {
	all := versions()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+strconv.Itoa(all[name]))
	}
	return strings.Join(out, ",")
}

// Lacks returns those extensions that the policy needs and that a proxy which
// announces these, in the form of [Extensions], does not understand.
func Lacks(p *model.Policy, announced string) (missing []string) {
	for _, name := range needs(p) {
		if announcedVersion(announced, name) < versions()[name] {
			missing = append(missing, name)
		}
	}
	return missing
}

func announcedVersion(announced, wanted string) (version int) {
	for entry := range strings.SplitSeq(announced, ",") {
		if name, number, _ := strings.Cut(entry, "="); name == wanted {
			version, _ = strconv.Atoi(number)
		}
	}
	return version
}

// Dialect is how much of a policy a proxy is sent.
type Dialect uint8

// The dialects, from the least to the most.
const (
	// DialectPlain is for proxies that pass over extensions.
	DialectPlain Dialect = iota
	// DialectLayer4 is for proxies that err on the closed side with extensions
	// that they do not understand, of which HTTP is one: they are sent what
	// layer 4 makes of it, which denies less than that.
	DialectLayer4
	// DialectFull is for proxies that understand HTTP.
	DialectFull
)

// Dialects is how many there are.
const Dialects = int(DialectFull) + 1

// DialectOf tells from what a proxy announces, if it does at all.
func DialectOf(announced string, aware bool) Dialect {
	switch {
	case !aware:
		return DialectPlain
	case announcedVersion(announced, httpExtension) < versions()[httpExtension]:
		return DialectLayer4
	}
	return DialectFull
}

// needs are the extensions in the policy's resource.
func needs(p *model.Policy) (out []string) {
	if p.Action > model.ActionDeny || len(p.Ports) > 0 || anyMatch(p.Rules, needsHTTP) {
		out = append(out, httpExtension)
	}
	if anyMatch(p.Rules, needsOther) || slices.ContainsFunc(p.Rules, ruleUnknown) {
		out = append(out, matchExtension)
	}
	if p.Unknown != "" {
		out = append(out, policyExtension)
	}
	return out
}

func anyMatch(rules []model.Rule, fits func(model.Match) bool) bool {
	return slices.ContainsFunc(rules, func(r model.Rule) bool {
		return slices.ContainsFunc(r.Clauses, func(c model.Clause) bool { return slices.ContainsFunc(c.Matches, fits) })
	})
}

func ruleUnknown(r model.Rule) bool {
	return r.Unknown != "" || slices.ContainsFunc(r.Clauses, func(c model.Clause) bool { return c.Unknown != "" })
}

func needsHTTP(m model.Match) bool { return m.HTTP != nil }

func needsOther(m model.Match) bool {
	return m.Unknown != "" || len(m.SourceLabels)+len(m.NotSourceLabels)+len(m.Times)+len(m.NotTimes) > 0
}

// For is the policy for proxies of a dialect: it never allows what p denies.
// As in Istio's ambient mode with attributes that a proxy lacks, what needs
// more than the dialect has never matches in an ALLOW policy, and any other
// policy matches by the rest; CUSTOM then denies, what decides nothing by
// itself never matches, and an ALLOW policy covers all ports. The policy itself is returned if it needs no more.
func For(p *model.Policy, d Dialect) *model.Policy {
	if d == DialectFull || len(needs(p)) == 0 {
		return p
	}
	r := reducer{d}
	if p.Action <= model.ActionDeny && d == DialectLayer4 && len(p.Ports) == 0 && !anyMatch(p.Rules, r.lacks) {
		return p
	}
	out := *p
	out.Rules, out.Ports, out.Provider, out.Authentication, out.RateLimit = nil, nil, nil, nil, nil
	if p.Action > model.ActionDeny {
		out.Action = model.ActionDeny
	}
	if d == DialectPlain {
		out.Unknown = ""
	}
	switch {
	case p.Action == model.ActionAllow:
		if p.Unknown == "" {
			out.Rules = r.narrow(p.Rules)
		}
	case p.Unknown != "":
		out.Rules = []model.Rule{{Clauses: []model.Clause{{}}}} // matches always
	case p.Action == model.ActionDeny || p.Action == model.ActionCustom:
		for _, rule := range p.Rules {
			rule = r.widen(rule)
			if len(p.Ports) > 0 {
				only := model.Clause{Matches: []model.Match{{DestinationPorts: p.Ports}}}
				rule.Clauses = append(slices.Clip(rule.Clauses), only)
			}
			out.Rules = append(out.Rules, rule)
		}
	case p.Action > model.ActionLimit:
		out.Rules = []model.Rule{{Clauses: []model.Clause{{}}}}
	}
	return &out
}

// reducer leaves out what a dialect lacks.
type reducer struct{ dialect Dialect }

func (r reducer) lacks(m model.Match) bool {
	return needsHTTP(m) || r.dialect == DialectPlain && needsOther(m)
}

// unknown reports whether a part of a rule has to be left out because of what
// it says of itself.
func (r reducer) unknown(reason string) bool { return r.dialect == DialectPlain && reason != "" }

// narrow leaves out the matches that need more, and the rules that can match
// no longer.
func (r reducer) narrow(rules []model.Rule) (out []model.Rule) {
	for _, rule := range rules {
		possible := !r.unknown(rule.Unknown)
		narrowed := model.Rule{Unknown: rule.Unknown}
		for _, c := range rule.Clauses {
			rest := slices.DeleteFunc(slices.Clone(c.Matches), r.lacks)
			possible = possible && !r.unknown(c.Unknown) && (len(c.Matches) == 0 || len(rest) > 0)
			narrowed.Clauses = append(narrowed.Clauses, model.Clause{Matches: rest, Unknown: c.Unknown})
		}
		if possible {
			out = append(out, narrowed)
		}
	}
	return out
}

// widen keeps of each match what needs no more; where nothing is left, the
// clause matches always.
func (r reducer) widen(rule model.Rule) model.Rule {
	if r.unknown(rule.Unknown) {
		return model.Rule{Clauses: []model.Clause{{}}}
	}
	out := model.Rule{Unknown: rule.Unknown}
	for _, c := range rule.Clauses {
		widened := model.Clause{Unknown: c.Unknown}
		for _, m := range c.Matches {
			if r.lacks(m) {
				always := r.unknown(m.Unknown)
				m = r.rest(m)
				if always || isEmpty(m) {
					widened.Matches = nil
					break
				}
			}
			widened.Matches = append(widened.Matches, m)
		}
		if r.unknown(c.Unknown) {
			widened = model.Clause{}
		}
		out.Clauses = append(out.Clauses, widened)
	}
	return out
}

func (r reducer) rest(m model.Match) model.Match {
	m.HTTP = nil
	if r.dialect == DialectPlain {
		m.SourceLabels, m.NotSourceLabels, m.Times, m.NotTimes, m.Unknown = nil, nil, nil, nil, ""
	}
	return m
}

func isEmpty(m model.Match) bool {
	return !needsOther(m) && len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
		len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}
