package policy

import (
	"net/netip"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// attribute is one list of a match; each is followed by its negation.
type attribute uint8

const (
	noAttribute attribute = iota
	principals
	notPrincipals
	namespaces
	notNamespaces
	serviceAccounts
	notServiceAccounts
	sourceIPs
	notSourceIPs
	sourceLabels
	notSourceLabels
	destinationPorts
	notDestinationPorts
	destinationIPs
	notDestinationIPs
	times
	notTimes
	methods
	notMethods
	paths
	notPaths
	hosts
	notHosts
	requestPrincipals
	notRequestPrincipals
	audiences
	notAudiences
	presenters
	notPresenters
	headers
	notHeaders
	claims
	notClaims
	remoteIPs
	notRemoteIPs
	serverNames
	notServerNames

	firstAttribute = principals
	lastLayer4     = notTimes
	lastAttribute  = notServerNames
)

// names are the attributes' names in an AuthorizationPolicy.
var names = [lastAttribute + 1]string{
	principals: "principals", notPrincipals: "notPrincipals",
	namespaces: "namespaces", notNamespaces: "notNamespaces",
	serviceAccounts: "serviceAccounts", notServiceAccounts: "notServiceAccounts",
	sourceIPs: "ipBlocks", notSourceIPs: "notIpBlocks",
	sourceLabels: "source.labels", notSourceLabels: "source.labels.notValues",
	destinationPorts: "ports", notDestinationPorts: "notPorts",
	destinationIPs: "destination.ip", notDestinationIPs: "destination.ip.notValues",
	times: "request.time", notTimes: "request.time.notValues",
	methods: "methods", notMethods: "notMethods",
	paths: "paths", notPaths: "notPaths",
	hosts: "hosts", notHosts: "notHosts",
	requestPrincipals: "requestPrincipals", notRequestPrincipals: "notRequestPrincipals",
	audiences: "request.auth.audiences", notAudiences: "request.auth.audiences.notValues",
	presenters: "request.auth.presenter", notPresenters: "request.auth.presenter.notValues",
	headers: "request.headers", notHeaders: "request.headers.notValues",
	claims: "request.auth.claims", notClaims: "request.auth.claims.notValues",
	remoteIPs: "remoteIpBlocks", notRemoteIPs: "notRemoteIpBlocks",
	serverNames: "connection.sni", notServerNames: "connection.sni.notValues",
}

// notHTTP are the names where the connection carries nothing by which to judge.
var notHTTP = func() (out [lastAttribute + 1]string) {
	for a := methods; a <= notClaims; a++ {
		out[a] = names[a] + " (the connection is not HTTP)"
	}
	out[remoteIPs], out[notRemoteIPs] = names[remoteIPs], names[notRemoteIPs]
	out[serverNames] = names[serverNames] + " (the connection names no server)"
	out[notServerNames] = names[notServerNames] + " (the connection names no server)"
	return out
}()

// String is the attribute's name in an AuthorizationPolicy.
func (a attribute) String() string {
	if a > lastAttribute {
		return ""
	}
	return names[a]
}

// verdict is what one attribute says.
type verdict uint8

const (
	absent verdict = iota // the match does not have it
	fits
	fails
	unproven // the fact it is about is not known
)

func (e *evaluation) judge(m *model.Match, a attribute, deny bool) verdict {
	switch a {
	case principals:
		return list(m.Principals, e.hasPrincipal(m.Principals), true)
	case notPrincipals:
		return list(m.NotPrincipals, e.hasPrincipal(m.NotPrincipals), false)
	case namespaces:
		return list(m.Namespaces, e.hasNamespace(m.Namespaces), true)
	case notNamespaces:
		return list(m.NotNamespaces, e.hasNamespace(m.NotNamespaces), false)
	case serviceAccounts:
		return list(m.ServiceAccounts, e.hasAccount(m.ServiceAccounts), true)
	case notServiceAccounts:
		return list(m.NotServiceAccounts, e.hasAccount(m.NotServiceAccounts), false)
	case sourceIPs:
		return addresses(m.SourceIPs, e.source, true)
	case notSourceIPs:
		return addresses(m.NotSourceIPs, e.source, false)
	case sourceLabels:
		return e.labelled(m.SourceLabels, true)
	case notSourceLabels:
		return e.labelled(m.NotSourceLabels, false)
	case destinationPorts:
		return list(m.DestinationPorts, e.hasPort(m.DestinationPorts), true)
	case notDestinationPorts:
		return list(m.NotDestinationPorts, e.hasPort(m.NotDestinationPorts), false)
	case destinationIPs:
		return addresses(m.DestinationIPs, e.destination, true)
	case notDestinationIPs:
		return addresses(m.NotDestinationIPs, e.destination, false)
	case times:
		return list(m.Times, e.within(m.Times), true)
	case notTimes:
		return list(m.NotTimes, e.within(m.NotTimes), false)
	default:
		return e.judgeHTTP(m.HTTP, a, deny)
	}
}

// list: one hit is wanted, or for a negation none.
func list[T any](values []T, hit, wanted bool) verdict {
	switch {
	case len(values) == 0:
		return absent
	case hit == wanted:
		return fits
	}
	return fails
}

// Without an identity nothing about it fits, not even an empty value.
func (e *evaluation) hasPrincipal(values []model.StringMatch) bool {
	if e.request.Identity.IsZero() {
		return false
	}
	for _, v := range values {
		if matchesJoined(e.principal[:], v) {
			return true
		}
	}
	return false
}

// matchesJoined compares what the parts amount to one after the other, which
// is not empty, without joining them.
func matchesJoined(parts []string, m model.StringMatch) bool {
	want := m.Value
	var ok bool
	switch m.Kind {
	case model.MatchExact:
		// The ends differ more often than the beginnings.
		if !strings.HasSuffix(want, parts[len(parts)-1]) {
			return false
		}
		for _, part := range parts {
			if want, ok = strings.CutPrefix(want, part); !ok {
				return false
			}
		}
		return want == ""
	case model.MatchPrefix:
		for _, part := range parts {
			if len(want) <= len(part) {
				return strings.HasPrefix(part, want)
			}
			if want, ok = strings.CutPrefix(want, part); !ok {
				return false
			}
		}
		return false
	case model.MatchSuffix:
		for i := len(parts) - 1; i >= 0; i-- {
			if len(want) <= len(parts[i]) {
				return strings.HasSuffix(parts[i], want)
			}
			if want, ok = strings.CutSuffix(want, parts[i]); !ok {
				return false
			}
		}
		return false
	case model.MatchPresence:
		return true
	case model.MatchTemplate:
	}
	return false
}

func (e *evaluation) hasNamespace(values []model.StringMatch) bool {
	if e.request.Identity.IsZero() {
		return false
	}
	for _, v := range values {
		if v.Matches(e.request.Identity.Namespace) {
			return true
		}
	}
	return false
}

func (e *evaluation) hasAccount(values []model.ServiceAccount) bool {
	id := &e.request.Identity
	for _, v := range values {
		if !id.IsZero() && v.Namespace == id.Namespace && v.Name == id.ServiceAccount {
			return true
		}
	}
	return false
}

func addresses(prefixes []netip.Prefix, a netip.Addr, wanted bool) verdict {
	if len(prefixes) > 0 && !a.IsValid() {
		return unproven
	}
	hit := false
	for _, p := range prefixes {
		hit = hit || contains(p, a)
	}
	return list(prefixes, hit, wanted)
}

// contains also knows prefixes that are IPv4 written as IPv6.
func contains(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) || p.Addr().Is4In6() && a.Is4() && p.Contains(netip.AddrFrom16(a.As16()))
}

// labelled wants every key to have one of its values, or for a negation none.
func (e *evaluation) labelled(keys []model.LabelMatch, wanted bool) verdict {
	if len(keys) == 0 {
		return absent
	}
	result := fits
	for _, k := range keys {
		value, known := e.labels[k.Key]
		switch {
		case !e.labelsProven || !known:
			result = unproven
		case anyMatches(k.Values, value) != wanted:
			return fails
		}
	}
	return result
}

func anyMatches(values []model.StringMatch, s string) bool {
	for _, v := range values {
		if v.Matches(s) {
			return true
		}
	}
	return false
}

func (e *evaluation) hasPort(ports []uint16) bool {
	for _, p := range ports {
		if p == e.request.Destination.Port() {
			return true
		}
	}
	return false
}

func (e *evaluation) within(windows []model.TimeWindow) bool {
	for _, w := range windows {
		if w.Contains(e.request.Time) {
			return true
		}
	}
	return false
}
