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
// As in Istio's policies, cluster.local does wherever it stands.
func (t trustDomains) ours(name string) bool {
	return name == model.DefaultTrustDomain || slices.Contains(t, name)
}

// expand adds to principals the same ones by the other names. Those of other
// trust domains, and what matches whatever the trust domain is, stay as they
// are.
func (t trustDomains) expand(principals []model.StringMatch) []model.StringMatch {
	var out []model.StringMatch
	add := func(m model.StringMatch) {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	for _, m := range principals {
		add(m)
		kind, rest, ours := t.split(m)
		if !ours {
			continue
		}
		for _, domain := range t {
			if other := domain + rest; !m.Matches(other) {
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

// same is the identity by every name of its trust domain.
func (t trustDomains) same(id model.Identity) []model.Identity {
	if !slices.Contains(t, id.TrustDomain) {
		return []model.Identity{id}
	}
	var out []model.Identity
	for _, domain := range t {
		out = append(out, model.Identity{TrustDomain: domain, Namespace: id.Namespace, ServiceAccount: id.ServiceAccount})
	}
	return out
}
