package build

import (
	"slices"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// trustDomains are the names of the own trust domain, all of which mean the
// same: its present name, then its aliases.
type trustDomains []string

// ours reports whether a policy that names a trust domain means the own one.
func (t trustDomains) ours(name string) bool { return t.points(name) || slices.Contains(t, name) }

// points reports whether a name only points to the own trust domain, as
// cluster.local does in policies like Istio's. It is not one of its names then,
// and may be that of somebody else's.
func (t trustDomains) points(name string) bool {
	return name == model.DefaultTrustDomain && len(t) > 0 && !slices.Contains(t, name)
}

// expand adds to principals the same ones by the other names; what only points
// to the own trust domain they replace. Those of other trust domains, and what
// matches whatever the trust domain is, stay as they are.
func (t trustDomains) expand(principals []model.StringMatch) []model.StringMatch {
	var out []model.StringMatch
	add := func(m model.StringMatch) {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	for _, m := range principals {
		kind, rest, ours := t.split(m)
		pointer := ours && t.points(domainOf(m))
		if !pointer {
			add(m)
		}
		if !ours {
			continue
		}
		for _, domain := range t {
			if other := domain + rest; pointer || !m.Matches(other) {
				add(model.StringMatch{Kind: kind, Value: other})
			}
		}
	}
	return out
}

// split takes the trust domain off a principal that names the own one, in whole
// or in part, and says how what is left is to be compared behind another name.
func (t trustDomains) split(m model.StringMatch) (kind model.StringMatchKind, rest string, ours bool) {
	switch slash := strings.IndexByte(m.Value, '/'); m.Kind {
	case model.MatchExact:
		return m.Kind, m.Value[max(slash, 0):], slash > 0 && t.ours(m.Value[:slash])
	case model.MatchPrefix:
		if slash >= 0 {
			return m.Kind, m.Value[slash:], t.ours(m.Value[:slash])
		}
		return m.Kind, "/", slices.ContainsFunc(t, func(domain string) bool { return strings.HasPrefix(domain, m.Value) })
	case model.MatchSuffix: // of a trust domain only if all behind it is there
		slash = strings.Index(m.Value, "/ns/")
		return model.MatchExact, m.Value[max(slash, 0):],
			slash > 0 && slices.ContainsFunc(t, func(domain string) bool { return strings.HasSuffix(domain, m.Value[:slash]) })
	case model.MatchPresence, model.MatchTemplate:
	}
	return 0, "", false
}

// domainOf is what a principal names whole as its trust domain, "" if it does
// not.
func domainOf(m model.StringMatch) string {
	domain, _, whole := strings.Cut(m.Value, "/")
	if !whole || m.Kind != model.MatchExact && m.Kind != model.MatchPrefix {
		return ""
	}
	return domain
}

// same is the identity by every name of its trust domain, as a policy means it.
func (t trustDomains) same(id model.Identity) []model.Identity {
	if !t.ours(id.TrustDomain) {
		return []model.Identity{id}
	}
	var out []model.Identity
	for _, domain := range t {
		out = append(out, model.Identity{TrustDomain: domain, Namespace: id.Namespace, ServiceAccount: id.ServiceAccount})
	}
	return out
}
