package policy

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
)

// The reference evaluator is written for clearness in three-valued logic:
// what is not known is maybe. A DENY policy matches unless its value is no, an
// ALLOW policy only if it is yes.
type truth int

const (
	isNo truth = iota
	isMaybe
	isYes
)

func truthOf(b bool) truth {
	if b {
		return isYes
	}
	return isNo
}

func opposite(t truth) truth { return isYes - t }

func allOf[T interface{}](list []T, f func(T) truth) truth {
	result := isYes
	for _, v := range list {
		result = min(result, f(v))
	}
	return result
}

func anyOf[T interface{}](list []T, f func(T) truth) truth {
	result := isNo
	for _, v := range list {
		result = max(result, f(v))
	}
	return result
}

func refPolicy(p *model.Policy, r *Request) truth {
	if p.Unknown != "" {
		return isMaybe
	}
	return anyOf(p.Rules, func(rule model.Rule) truth {
		if rule.Unknown != "" {
			return isMaybe
		}
		return allOf(rule.Clauses, func(c model.Clause) truth {
			switch {
			case c.Unknown != "":
				return isMaybe
			case len(c.Matches) == 0:
				return isYes
			}
			return anyOf(c.Matches, func(m model.Match) truth { return refMatch(m, r) })
		})
	})
}

func refMatch(m model.Match, r *Request) truth {
	if m.Unknown != "" {
		return isMaybe
	}
	var found []truth
	attribute := func(present bool, value truth) {
		if present {
			found = append(found, value)
		}
	}
	id := r.Identity
	text := func(value string) func(model.StringMatch) truth {
		return func(s model.StringMatch) truth { return truthOf(id != model.Identity{} && glob(s, value)) }
	}
	account := func(a model.ServiceAccount) truth {
		return truthOf(id != model.Identity{} && a == model.ServiceAccount{Namespace: id.Namespace, Name: id.ServiceAccount})
	}
	port := func(p uint16) truth { return truthOf(p == r.Destination.Port()) }
	inside := func(a netip.Addr) func(netip.Prefix) truth {
		return func(p netip.Prefix) truth {
			_, block, err := net.ParseCIDR(p.String())
			return truthOf(err == nil && block.Contains(net.IP(a.AsSlice())))
		}
	}
	clock := func(w model.TimeWindow) truth {
		now, first, last := r.Time.UTC().Format(time.TimeOnly), wall(w.First), wall(w.Last)
		if first < last {
			return truthOf(first <= now && now < last)
		}
		return truthOf(now >= first || now < last)
	}
	attribute(len(m.Principals) > 0, anyOf(m.Principals, text(id.Principal())))
	attribute(len(m.NotPrincipals) > 0, opposite(anyOf(m.NotPrincipals, text(id.Principal()))))
	attribute(len(m.Namespaces) > 0, anyOf(m.Namespaces, text(id.Namespace)))
	attribute(len(m.NotNamespaces) > 0, opposite(anyOf(m.NotNamespaces, text(id.Namespace))))
	attribute(len(m.ServiceAccounts) > 0, anyOf(m.ServiceAccounts, account))
	attribute(len(m.NotServiceAccounts) > 0, opposite(anyOf(m.NotServiceAccounts, account)))
	attribute(len(m.SourceIPs) > 0, anyOf(m.SourceIPs, inside(r.Source)))
	attribute(len(m.NotSourceIPs) > 0, opposite(anyOf(m.NotSourceIPs, inside(r.Source))))
	attribute(len(m.DestinationIPs) > 0, anyOf(m.DestinationIPs, inside(r.Destination.Addr())))
	attribute(len(m.NotDestinationIPs) > 0, opposite(anyOf(m.NotDestinationIPs, inside(r.Destination.Addr()))))
	attribute(len(m.DestinationPorts) > 0, anyOf(m.DestinationPorts, port))
	attribute(len(m.NotDestinationPorts) > 0, opposite(anyOf(m.NotDestinationPorts, port)))
	attribute(len(m.SourceLabels) > 0, allOf(m.SourceLabels, func(l model.LabelMatch) truth { return refLabel(l, r) }))
	attribute(len(m.NotSourceLabels) > 0, allOf(m.NotSourceLabels, func(l model.LabelMatch) truth { return opposite(refLabel(l, r)) }))
	attribute(len(m.Times) > 0, anyOf(m.Times, clock))
	attribute(len(m.NotTimes) > 0, opposite(anyOf(m.NotTimes, clock)))
	if m.HTTP != nil {
		refHTTP(m.HTTP, r, attribute)
	}
	if len(found) == 0 {
		return isNo
	}
	return slices.Min(found)
}

func refLabel(l model.LabelMatch, r *Request) truth {
	if r.SourceWorkload == nil || r.Identity == (model.Identity{}) || r.SourceWorkload.Identity() != r.Identity {
		return isMaybe
	}
	value, ok := r.SourceWorkload.Labels[l.Key]
	if !ok {
		return isMaybe
	}
	return anyOf(l.Values, func(s model.StringMatch) truth { return truthOf(glob(s, value)) })
}

func glob(m model.StringMatch, s string) bool {
	v := regexp.QuoteMeta(m.Value)
	expr := map[model.StringMatchKind]string{
		model.MatchExact: v, model.MatchPrefix: v + ".*", model.MatchSuffix: ".*" + v, model.MatchPresence: ".+",
	}[m.Kind]
	return (m.Kind == model.MatchExact || s != "") && regexp.MustCompile("^(?:"+expr+")$").MatchString(s)
}

func wall(d time.Duration) string { return time.Unix(0, 0).UTC().Add(d).Format(time.TimeOnly) }

// refDecide is the outcome of the policies that count, without anybody asked.
func refDecide(policies []*model.Policy, missing bool, r *Request) bool {
	var denying, allowing, asking []*model.Policy
	for _, p := range policies {
		switch p.Action {
		case model.ActionDeny:
			denying = append(denying, p)
		case model.ActionAllow:
			allowing = append(allowing, p)
		case model.ActionCustom:
			asking = append(asking, p)
		default:
			if p.Unknown != "" {
				denying = append(denying, p)
			}
		}
	}
	value := func(p *model.Policy) truth { return refPolicy(p, r) }
	switch {
	case anyOf(denying, value) != isNo, anyOf(asking, value) != isNo, missing:
		return false
	case len(allowing) == 0:
		return !refForeign(r)
	}
	return anyOf(allowing, value) == isYes
}

func refForeign(r *Request) bool {
	return r.Identity != model.Identity{} && r.Identity.TrustDomain != destination().TrustDomain
}

func drawStrings(t *rapid.T, name string, values ...string) []model.StringMatch {
	return texts(rapid.SliceOfN(rapid.SampledFrom(values), 0, 2).Draw(t, name)...)
}

var (
	drawnPrincipals = []string{"*", "td/ns/a/sa/x", "td/ns/a*", "td/ns/", "t*", "*/sa/y", "*y", "td2/ns/b/sa/y", "td/ns/a/sa/x/", "", "*td/ns/a/sa/x", "td/ns/a/sa/x*"}
	drawnNamespaces = []string{"*", "a", "b", "a*", "*b", ""}
	drawnPrefixes   = cidrs("10.0.0.0/8", "10.0.0.1/32", "fd00::/8", "0.0.0.0/0", "::/0", "10.0.0.2/31")
	drawnAddresses  = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("192.0.2.1")}
)

func drawMatch(t *rapid.T) model.Match {
	var m model.Match
	if rapid.IntRange(0, 9).Draw(t, "unknown match") == 0 {
		m.Unknown = "match"
	}
	accounts := rapid.SliceOfN(rapid.SampledFrom([]model.ServiceAccount{{Namespace: "a", Name: "x"}, {Namespace: "b", Name: "y"}, {}}), 0, 2)
	prefixes := rapid.SliceOfN(rapid.SampledFrom(drawnPrefixes), 0, 2)
	ports := rapid.SliceOfN(rapid.SampledFrom([]uint16{80, 81}), 0, 2)
	hours := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) model.TimeWindow {
		return model.TimeWindow{
			First: time.Duration(rapid.IntRange(0, 23).Draw(t, "first")) * time.Hour,
			Last:  time.Duration(rapid.IntRange(0, 23).Draw(t, "last")) * time.Hour,
		}
	}), 0, 2)
	labels := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) model.LabelMatch {
		return model.LabelMatch{
			Key:    rapid.SampledFrom([]string{"app", "tier"}).Draw(t, "key"),
			Values: drawStrings(t, "label values", "x", "*", "", "y*"),
		}
	}), 0, 2)
	// Few attributes at a time, so that matches are common.
	for range rapid.IntRange(0, 3).Draw(t, "attributes") {
		switch rapid.IntRange(0, 20).Draw(t, "attribute") {
		case 0:
			m.Principals = drawStrings(t, "principals", drawnPrincipals...)
		case 1:
			m.NotPrincipals = drawStrings(t, "not principals", drawnPrincipals...)
		case 2:
			m.Namespaces = drawStrings(t, "namespaces", drawnNamespaces...)
		case 3:
			m.NotNamespaces = drawStrings(t, "not namespaces", drawnNamespaces...)
		case 4:
			m.ServiceAccounts = accounts.Draw(t, "accounts")
		case 5:
			m.NotServiceAccounts = accounts.Draw(t, "not accounts")
		case 6:
			m.SourceIPs = prefixes.Draw(t, "source")
		case 7:
			m.NotSourceIPs = prefixes.Draw(t, "not source")
		case 8:
			m.DestinationIPs = prefixes.Draw(t, "destination")
		case 9:
			m.NotDestinationIPs = prefixes.Draw(t, "not destination")
		case 10:
			m.DestinationPorts = ports.Draw(t, "ports")
		case 11:
			m.NotDestinationPorts = ports.Draw(t, "not ports")
		case 12:
			m.SourceLabels = labels.Draw(t, "labels")
		case 13:
			m.NotSourceLabels = labels.Draw(t, "not labels")
		case 14:
			m.Times = hours.Draw(t, "times")
		case 15:
			m.NotTimes = hours.Draw(t, "not times")
		default:
			m.HTTP = drawHTTPMatch(t)
		}
	}
	return m
}

func drawUnknown(t *rapid.T, level string) string {
	if rapid.IntRange(0, 15).Draw(t, "unknown "+level) == 0 {
		return level
	}
	return ""
}

func drawPolicy(t *rapid.T) *model.Policy {
	clauses := rapid.Custom(func(t *rapid.T) model.Clause {
		return model.Clause{Unknown: drawUnknown(t, "clause"), Matches: rapid.SliceOfN(rapid.Custom(drawMatch), 0, 2).Draw(t, "matches")}
	})
	rules := rapid.Custom(func(t *rapid.T) model.Rule {
		return model.Rule{Unknown: drawUnknown(t, "rule"), Clauses: rapid.SliceOfN(clauses, 0, 2).Draw(t, "clauses")}
	})
	p := &model.Policy{
		Name:      rapid.SampledFrom([]string{"p", "q", "r", "s"}).Draw(t, "name"),
		Namespace: rapid.SampledFrom([]string{"data", "shop"}).Draw(t, "namespace"),
		Scope:     model.PolicyScope(rapid.IntRange(0, 2).Draw(t, "scope")),
		Action:    model.Action(rapid.SampledFrom([]int{0, 0, 1, 1, 2, 3}).Draw(t, "action")),
		DryRun:    rapid.IntRange(0, 4).Draw(t, "dry run") == 0,
		Unknown:   drawUnknown(t, "policy"),
		Rules:     rapid.SliceOfN(rules, 0, 2).Draw(t, "rules"),
	}
	if p.Action == model.ActionCustom {
		p.Provider = &model.Provider{Name: "x"}
	}
	return p
}

func drawRequest(t *rapid.T) Request {
	r := Request{
		Source:      rapid.SampledFrom(drawnAddresses).Draw(t, "source"),
		Destination: netip.AddrPortFrom(rapid.SampledFrom(drawnAddresses).Draw(t, "destination"), rapid.SampledFrom([]uint16{80, 81, 82}).Draw(t, "port")),
		Identity: rapid.SampledFrom([]model.Identity{
			{}, {TrustDomain: "td", Namespace: "a", ServiceAccount: "x"}, {TrustDomain: "td2", Namespace: "b", ServiceAccount: "y"},
			{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "x"},
		}).Draw(t, "identity"),
		Workload: destination(),
		Time:     noon.Add(time.Duration(rapid.IntRange(0, 24*3600-1).Draw(t, "second")) * time.Second),
	}
	drawHTTP(t, &r)
	if rapid.Bool().Draw(t, "source workload") {
		r.SourceWorkload = &model.Workload{
			TrustDomain: "td", Namespace: "a", ServiceAccount: "x",
			Labels: rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier"}), rapid.SampledFrom([]string{"", "x", "yy"}), 0, 2).Draw(t, "labels"),
		}
	}
	return r
}

// drawWorld also returns the policies that cover the destination, and whether
// one that it names was never seen.
func drawWorld(t *rapid.T) (s *model.Snapshot, covering []*model.Policy, missing bool) {
	byKey := rapid.SliceOfNDistinct(rapid.Custom(drawPolicy), 0, 5, (*model.Policy).Key).Draw(t, "policies")
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"data/p", "data/q", "shop/p", "shop/r"}), 0, 3, rapid.ID[string]).Draw(t, "names")
	removed := rapid.SliceOfN(rapid.SampledFrom([]string{"data/p", "data/q", "shop/p"}), 0, 3).Draw(t, "removed")
	s = model.NewSnapshot().
		Apply(model.Update{RemovedPolicies: removed}).
		Apply(model.Update{Policies: byKey, Workloads: []*model.Workload{destination(names...)}, PoliciesComplete: true})
	for _, p := range byKey {
		if p.Scope == model.ScopeGlobal || p.Scope == model.ScopeNamespace && p.Namespace == "data" || slices.Contains(names, p.Key()) {
			covering = append(covering, p)
		}
	}
	for _, name := range names {
		seen := slices.ContainsFunc(byKey, func(p *model.Policy) bool { return p.Key() == name })
		missing = missing || !seen && !slices.Contains(removed, name)
	}
	return s, covering, missing
}

func TestEvaluateAgreesWithTheReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, covering, missing := drawWorld(t)
		r := drawRequest(t)
		enforced := slices.DeleteFunc(slices.Clone(covering), func(p *model.Policy) bool { return p.DryRun })
		want, wantAll := refDecide(enforced, missing, &r), refDecide(covering, missing, &r)
		d := Evaluate(s, &r)
		if d.Allowed != want {
			t.Fatalf("%v; the reference says %v", d, want)
		}
		if (d.DryRun != "") != (want != wantAll) {
			t.Fatalf("%v; with dry run the reference says %v", d, wantAll)
		}
		checkSteps(t, d, Explain(s, &r), refForeign(&r))
	})
}

// checkSteps: the explanation must account for the decision.
func checkSteps(t *rapid.T, d Decision, steps []Step, foreign bool) {
	matched := func(action string) bool {
		return slices.ContainsFunc(steps, func(s Step) bool { return s.Action == action && s.Matched && !s.DryRun })
	}
	allows := slices.ContainsFunc(steps, func(s Step) bool { return s.Action == "ALLOW" && !s.DryRun })
	missing := slices.ContainsFunc(steps, func(s Step) bool { return s.Missing })
	want := ReasonNoPolicy
	unknown := slices.ContainsFunc(steps, func(s Step) bool {
		return s.Matched && !s.DryRun && s.Unknown && s.Action != "ALLOW"
	})
	switch {
	case matched("DENY"), unknown:
		want = ReasonDenied
	case missing:
		want = ReasonMissingPolicy
	case matched("ALLOW"):
		want = ReasonAllowed
	case allows:
		want = ReasonNotAllowed
	case foreign:
		want = ReasonForeign
	}
	if matched("CUSTOM") && (want == ReasonAllowed || want == ReasonNoPolicy) {
		want = ReasonAsk
	}
	if d.Reason != want {
		t.Fatalf("decision %v, but the steps lead to %v:\n%v", d, want, steps)
	}
}
