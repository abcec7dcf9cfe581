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

// The names of our extensions.
const (
	workloadExtension = "tacit.mesh/workload"
	serviceExtension  = "tacit.mesh/service"
	policyExtension   = "tacit.mesh/policy"
	matchExtension    = "tacit.mesh/match"
)

// versions are those that this version understands. One is raised when a
// message gains a field that an older proxy must not miss.
func versions() map[string]int {
	return map[string]int{workloadExtension: 1, serviceExtension: 1, policyExtension: 1, matchExtension: 1}
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
	has := map[string]int{}
	for entry := range strings.SplitSeq(announced, ",") {
		name, version, _ := strings.Cut(entry, "=")
		has[name], _ = strconv.Atoi(version)
	}
	for _, name := range needs(p) {
		if has[name] < versions()[name] {
			missing = append(missing, name)
		}
	}
	return missing
}

// needs are the extensions in the policy's resource.
func needs(p *model.Policy) (out []string) {
	if slices.ContainsFunc(p.Rules, ruleNeeds) {
		out = append(out, matchExtension)
	}
	if p.Unknown != "" {
		out = append(out, policyExtension)
	}
	return out
}

func ruleNeeds(r model.Rule) bool {
	return r.Unknown != "" || slices.ContainsFunc(r.Clauses, func(c model.Clause) bool {
		return c.Unknown != "" || slices.ContainsFunc(c.Matches, matchNeeds)
	})
}

func matchNeeds(m model.Match) bool {
	return m.Unknown != "" || len(m.SourceLabels)+len(m.NotSourceLabels)+len(m.Times)+len(m.NotTimes) > 0
}

// WithoutExtensions is the policy for proxies that do not know of extensions
// and so would pass over them: it never allows what p denies. As in Istio's
// ambient mode with attributes that a proxy lacks, what needs an extension
// never matches in an ALLOW policy, and a DENY policy matches by the rest. The
// policy itself is returned if it needs none.
func WithoutExtensions(p *model.Policy) *model.Policy {
	if len(needs(p)) == 0 {
		return p
	}
	out := *p
	out.Rules, out.Unknown = nil, ""
	if p.Action == model.ActionAllow {
		if p.Unknown == "" {
			out.Rules = narrow(p.Rules)
		}
		return &out
	}
	if p.Unknown != "" {
		out.Rules = []model.Rule{{Clauses: []model.Clause{{}}}} // matches always
		return &out
	}
	for _, r := range p.Rules {
		out.Rules = append(out.Rules, widen(r))
	}
	return &out
}

// narrow leaves out the matches that need an extension, and the rules that can
// match no more.
func narrow(rules []model.Rule) (out []model.Rule) {
	for _, r := range rules {
		possible := r.Unknown == ""
		var narrowed model.Rule
		for _, c := range r.Clauses {
			rest := slices.DeleteFunc(slices.Clone(c.Matches), matchNeeds)
			possible = possible && c.Unknown == "" && (len(c.Matches) == 0 || len(rest) > 0)
			narrowed.Clauses = append(narrowed.Clauses, model.Clause{Matches: rest})
		}
		if possible {
			out = append(out, narrowed)
		}
	}
	return out
}

// widen keeps of each match what needs no extension; where nothing is left,
// the clause matches always.
func widen(r model.Rule) model.Rule {
	if r.Unknown != "" {
		return model.Rule{Clauses: []model.Clause{{}}}
	}
	var out model.Rule
	for _, c := range r.Clauses {
		widened := model.Clause{}
		for _, m := range c.Matches {
			if matchNeeds(m) {
				always := m.Unknown != ""
				m.SourceLabels, m.NotSourceLabels, m.Times, m.NotTimes, m.Unknown = nil, nil, nil, nil, ""
				if always || isEmpty(m) {
					widened.Matches = nil
					break
				}
			}
			widened.Matches = append(widened.Matches, m)
		}
		if c.Unknown != "" {
			widened.Matches = nil
		}
		out.Clauses = append(out.Clauses, widened)
	}
	return out
}

func isEmpty(m model.Match) bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
		len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}
