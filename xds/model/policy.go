package model

import (
	"cmp"
	"net/netip"
	"strings"
	"time"
)

// PolicyScope says which destination workloads a policy covers.
type PolicyScope uint8

// The scopes of WDS, by their numbers on the wire.
const (
	ScopeGlobal    PolicyScope = 0
	ScopeNamespace PolicyScope = 1
	ScopeSelector  PolicyScope = 2 // those that name it in Workload.Policies
)

// Action is what a policy's match leads to.
type Action uint8

// The first two are actions of WDS, by their numbers on the wire; the others
// travel in an extension.
const (
	ActionAllow        Action = 0
	ActionDeny         Action = 1
	ActionAudit        Action = 2 // a match is reported, and decides nothing
	ActionCustom       Action = 3 // on a match, Provider decides as well
	ActionAuthenticate Action = 4 // Authentication says which tokens are accepted
	ActionLimit        Action = 5 // RateLimit says how much is accepted
)

// Policy is an authorization policy. It matches if any rule does; a rule if
// all of its clauses do; a clause if it is empty or any of its matches does.
// A policy without rules never matches.
//
// Unknown, at each level, names a part that could not be understood. It makes
// that level of an ALLOW policy not match and of any other match, so that an
// older proxy errs on the closed side; a policy that is unknown as a whole
// counts as a DENY or an ALLOW policy.
type Policy struct {
	Name      string
	Namespace string
	Scope     PolicyScope
	Action    Action
	DryRun    bool
	Rules     []Rule
	Unknown   string
	// Ports of the workload that the policy covers; none: all. An ALLOW policy
	// denies nothing on others.
	Ports []uint16

	Provider       *Provider              // of ActionCustom
	Authentication *RequestAuthentication // of ActionAuthenticate
	RateLimit      *RateLimit             // of ActionLimit
}

// Key is "NAMESPACE/NAME", the policy's primary key.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// NotUnderstood names a part of the policy, at any level, that could not be
// understood; empty if there is none.
func (p *Policy) NotUnderstood() string {
	what := p.Unknown
	for _, r := range p.Rules {
		what = cmp.Or(what, r.Unknown)
		for _, c := range r.Clauses {
			what = cmp.Or(what, c.Unknown)
			for _, m := range c.Matches {
				what = cmp.Or(what, m.Unknown)
			}
		}
	}
	return what
}

// Rule is a conjunction of clauses.
type Rule struct {
	Clauses []Clause
	Unknown string
}

// Clause is a disjunction of matches.
type Clause struct {
	Matches []Match
	Unknown string
}

// Match is a conjunction of attributes; the values of one attribute are
// alternatives, and a Not list must hold none that fits. A match without any
// attribute never matches.
type Match struct {
	Namespaces, NotNamespaces             []StringMatch
	Principals, NotPrincipals             []StringMatch // compared without "spiffe://"
	ServiceAccounts, NotServiceAccounts   []ServiceAccount
	SourceIPs, NotSourceIPs               []netip.Prefix
	DestinationIPs, NotDestinationIPs     []netip.Prefix
	DestinationPorts, NotDestinationPorts []uint16
	SourceLabels, NotSourceLabels         []LabelMatch
	Times, NotTimes                       []TimeWindow
	HTTP                                  *HTTPMatch // nil: none of its attributes
	Unknown                               string
}

// ServiceAccount names one account.
type ServiceAccount struct{ Namespace, Name string }

// StringMatchKind is how a StringMatch compares.
type StringMatchKind uint8

// The kinds of WDS.
const (
	MatchExact StringMatchKind = iota
	MatchPrefix
	MatchSuffix
	MatchPresence // any non-empty value
	MatchTemplate // a path with {*} and {**}; of paths only
)

// StringMatch is one alternative of a string attribute.
type StringMatch struct {
	Kind  StringMatchKind
	Value string
}

// ParseStringMatch reads Istio's notation: "v", "v*", "*v" or "*".
func ParseStringMatch(s string) StringMatch {
	switch {
	case s == "*":
		return StringMatch{Kind: MatchPresence}
	case strings.HasPrefix(s, "*"):
		return StringMatch{Kind: MatchSuffix, Value: s[1:]}
	case strings.HasSuffix(s, "*"):
		return StringMatch{Kind: MatchPrefix, Value: s[:len(s)-1]}
	}
	return StringMatch{Kind: MatchExact, Value: s}
}

// Matches compares a value. An absent value is the empty string, which only
// an exact match of the empty string fits.
func (m StringMatch) Matches(v string) bool {
	switch m.Kind {
	case MatchExact:
		return v == m.Value
	case MatchPrefix:
		return v != "" && strings.HasPrefix(v, m.Value)
	case MatchSuffix:
		return v != "" && strings.HasSuffix(v, m.Value)
	case MatchPresence:
		return v != ""
	case MatchTemplate:
		return matchesTemplate(m.Value, v)
	}
	return false
}

// MatchesFold compares without regard to the case of letters of ASCII.
func (m StringMatch) MatchesFold(v string) bool {
	switch n := len(m.Value); m.Kind {
	case MatchExact:
		return EqualFold(v, m.Value)
	case MatchPrefix:
		return v != "" && len(v) >= n && EqualFold(v[:n], m.Value)
	case MatchSuffix:
		return v != "" && len(v) >= n && EqualFold(v[len(v)-n:], m.Value)
	case MatchPresence:
		return v != ""
	case MatchTemplate:
	}
	return false
}

// EqualFold compares without regard to the case of letters of ASCII, and of no
// others: names of hosts and headers have none.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// String is Istio's notation.
func (m StringMatch) String() string {
	switch m.Kind {
	case MatchPrefix:
		return m.Value + "*"
	case MatchSuffix:
		return "*" + m.Value
	case MatchPresence:
		return "*"
	}
	return m.Value
}

// LabelMatch is one `source.labels[KEY]` condition. A workload whose Labels
// lack the key has an unknown label, not an empty one.
type LabelMatch struct {
	Key    string
	Values []StringMatch
}

// TimeWindow is a daily window in UTC, both ends as time since midnight,
// the first included and the last not. First > Last crosses midnight; equal
// ends are the whole day.
type TimeWindow struct{ First, Last time.Duration }

// Contains reports whether t lies in the window.
func (w TimeWindow) Contains(t time.Time) bool {
	d := sinceMidnight(t)
	switch {
	case w.First < w.Last:
		return w.First <= d && d < w.Last
	case w.First > w.Last:
		return d >= w.First || d < w.Last
	}
	return true
}

// NextEdge is the first moment after t at which Contains may change.
func (w TimeWindow) NextEdge(t time.Time) time.Time {
	d := sinceMidnight(t)
	midnight := t.UTC().Add(-d)
	next := midnight.Add(48 * time.Hour)
	for _, edge := range []time.Duration{w.First, w.Last, w.First + 24*time.Hour, w.Last + 24*time.Hour} {
		if at := midnight.Add(edge); at.After(t) && at.Before(next) {
			next = at
		}
	}
	return next
}

func sinceMidnight(t time.Time) time.Duration {
	t = t.UTC()
	h, m, s := t.Clock()
	return time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(s)*time.Second + time.Duration(t.Nanosecond())
}
