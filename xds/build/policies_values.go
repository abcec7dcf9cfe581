package build

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	securityv1beta1 "istio.io/api/security/v1beta1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// values reads the alternatives of one attribute.
func values[T any](m *matchReader, to *[]T, field string, list []string, parse func(string) (T, error)) {
	for i, s := range list {
		m.known++
		v, err := parse(s)
		if err != nil {
			m.invalid(fmt.Sprintf("%s[%d]", field, i), "%v", err)
			continue
		}
		*to = append(*to, v)
	}
}

func (m *matchReader) source(s *securityv1beta1.Source) {
	values(m, &m.out.Principals, "principals", s.GetPrincipals(), parsePrincipal)
	values(m, &m.out.NotPrincipals, "notPrincipals", s.GetNotPrincipals(), parsePrincipal)
	m.trustDomains("trustDomains", "notTrustDomains", s.GetTrustDomains(), s.GetNotTrustDomains())
	values(m, &m.out.Namespaces, "namespaces", s.GetNamespaces(), parseString)
	values(m, &m.out.NotNamespaces, "notNamespaces", s.GetNotNamespaces(), parseString)
	values(m, &m.out.ServiceAccounts, "serviceAccounts", s.GetServiceAccounts(), m.parseServiceAccount)
	values(m, &m.out.NotServiceAccounts, "notServiceAccounts", s.GetNotServiceAccounts(), m.parseServiceAccount)
	values(m, &m.out.SourceIPs, "ipBlocks", s.GetIpBlocks(), model.ParseCIDR)
	values(m, &m.out.NotSourceIPs, "notIpBlocks", s.GetNotIpBlocks(), model.ParseCIDR)
	m.remoteIPs("remoteIpBlocks", "notRemoteIpBlocks", s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())
	m.requestPrincipals("requestPrincipals", "notRequestPrincipals", s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
}

// trustDomains are a principal's first part. A match cannot hold two lists of
// principals that must both fit, so both kinds at once are unknown.
func (m *matchReader) trustDomains(field, notField string, list, not []string) {
	if len(list) > 0 && len(m.out.Principals) > 0 {
		m.invalid(field, "cannot be combined with principals")
	}
	values(m, &m.out.Principals, field, list, parseTrustDomain)
	values(m, &m.out.NotPrincipals, notField, not, parseTrustDomain)
}

// remoteIPs are the original client's addresses. Where no proxies are trusted
// to tell them, these can only be the connections' own: X-Forwarded-For is
// whatever a client likes to say.
func (m *matchReader) remoteIPs(field, notField string, list, not []string) {
	if len(list)+len(not) == 0 {
		return
	}
	if m.builder.forwarding.Proxies > 0 {
		m.http().Forwarding = m.builder.forwarding
		values(m, &m.http().RemoteIPs, field, list, model.ParseCIDR)
		values(m, &m.http().NotRemoteIPs, notField, not, model.ParseCIDR)
		return
	}
	var remote []netip.Prefix
	values(m, &remote, field, list, model.ParseCIDR)
	values(m, &m.out.NotSourceIPs, notField, not, model.ParseCIDR)
	m.status.say("%s: compared with the connection's source address; X-Forwarded-For is read where the mesh's configuration says trustedProxies, the PROXY protocol is not", m.path)
	switch {
	case len(remote) == 0:
	case len(m.out.SourceIPs) == 0:
		m.out.SourceIPs = remote
	default:
		m.out.SourceIPs = intersect(m.out.SourceIPs, remote)
		m.never = len(m.out.SourceIPs) == 0
	}
}

// intersect: of two prefixes that overlap, one contains the other.
func intersect(a, b []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range a {
		for _, y := range b {
			if !x.Overlaps(y) {
				continue
			}
			if x.Bits() < y.Bits() {
				out = append(out, y)
			} else {
				out = append(out, x)
			}
		}
	}
	return out
}

func (m *matchReader) operation(o *securityv1beta1.Operation) {
	values(m, &m.out.DestinationPorts, "ports", o.GetPorts(), parsePort)
	values(m, &m.out.NotDestinationPorts, "notPorts", o.GetNotPorts(), parsePort)
	m.requestsTo(o)
}

// condition reads a `when`. The keys are Istio's, and two more:
// source.labels[KEY], and request.time with values "HH:MM:SS-HH:MM:SS", each a
// daily window in UTC, its end not included.
func (m *matchReader) condition(c *securityv1beta1.Condition) {
	in, not := c.GetValues(), c.GetNotValues()
	label, isLabel := labelKey(c.GetKey())
	switch key := c.GetKey(); {
	case key == "source.ip":
		values(m, &m.out.SourceIPs, "values", in, model.ParseCIDR)
		values(m, &m.out.NotSourceIPs, "notValues", not, model.ParseCIDR)
	case key == "remote.ip":
		m.remoteIPs("values", "notValues", in, not)
	case key == "source.namespace":
		values(m, &m.out.Namespaces, "values", in, parseString)
		values(m, &m.out.NotNamespaces, "notValues", not, parseString)
	case key == "source.principal":
		values(m, &m.out.Principals, "values", in, parsePrincipal)
		values(m, &m.out.NotPrincipals, "notValues", not, parsePrincipal)
	case key == "source.trustDomain":
		m.trustDomains("values", "notValues", in, not)
	case key == "source.serviceAccount":
		values(m, &m.out.ServiceAccounts, "values", in, m.parseServiceAccount)
		values(m, &m.out.NotServiceAccounts, "notValues", not, m.parseServiceAccount)
	case key == "destination.ip":
		values(m, &m.out.DestinationIPs, "values", in, model.ParseCIDR)
		values(m, &m.out.NotDestinationIPs, "notValues", not, model.ParseCIDR)
	case key == "destination.port":
		values(m, &m.out.DestinationPorts, "values", in, parsePort)
		values(m, &m.out.NotDestinationPorts, "notValues", not, parsePort)
	case key == "request.time":
		values(m, &m.out.Times, "values", in, parseWindow)
		values(m, &m.out.NotTimes, "notValues", not, parseWindow)
	case isLabel:
		m.labels(label, in, not)
	case m.requestCondition(key, in, not):
	case strings.HasPrefix(key, "experimental."):
		m.invalid("key", "%q is about filters of Envoy, of which there are none here", key)
	default:
		m.invalid("key", "%q is not a condition that is known", key)
	}
}

func labelKey(key string) (string, bool) {
	label, ok := strings.CutPrefix(key, "source.labels[")
	if !ok {
		return "", false
	}
	label, ok = strings.CutSuffix(label, "]")
	return label, ok && label != ""
}

func (m *matchReader) labels(key string, in, not []string) {
	m.builder.labelKeys[key] = struct{}{}
	parse := func(s string) (model.StringMatch, error) { return model.ParseStringMatch(s), nil }
	if len(in) > 0 {
		l := model.LabelMatch{Key: key}
		values(m, &l.Values, "values", in, parse)
		m.out.SourceLabels = append(m.out.SourceLabels, l)
	}
	if len(not) > 0 {
		l := model.LabelMatch{Key: key}
		values(m, &l.Values, "notValues", not, parse)
		m.out.NotSourceLabels = append(m.out.NotSourceLabels, l)
	}
}

func parseString(s string) (model.StringMatch, error) {
	if s == "" {
		return model.StringMatch{}, errors.New("an empty value")
	}
	return model.ParseStringMatch(s), nil
}

// parsePrincipal takes a whole SPIFFE id as well; principals are compared
// without the scheme.
func parsePrincipal(s string) (model.StringMatch, error) {
	return parseString(strings.TrimPrefix(s, "spiffe://"))
}

func parseTrustDomain(s string) (model.StringMatch, error) {
	v, err := parseString(s)
	switch {
	case err != nil:
		return v, err
	case strings.Contains(s, "/"):
		return v, fmt.Errorf("%q is not a trust domain", s)
	case v.Kind == model.MatchSuffix:
		return v, fmt.Errorf("%q: a suffix of the trust domain cannot be matched", s)
	case v.Kind == model.MatchExact:
		return model.StringMatch{Kind: model.MatchPrefix, Value: s + "/"}, nil
	}
	return v, nil
}

// parseServiceAccount reads "NAMESPACE/NAME", or "NAME" in the policy's own
// namespace; Istio allows no wildcard here.
func (m *matchReader) parseServiceAccount(s string) (model.ServiceAccount, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok {
		namespace, name = m.namespace, s
	}
	if namespace == "" || name == "" || strings.ContainsAny(s, "*") || strings.Contains(name, "/") {
		return model.ServiceAccount{}, fmt.Errorf("%q is not a service account (NAMESPACE/NAME or NAME, without wildcards)", s)
	}
	return model.ServiceAccount{Namespace: namespace, Name: name}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port (1-65535)", s)
	}
	return uint16(n), nil
}

// parseWindow reads "HH:MM:SS-HH:MM:SS". It may cross midnight; 24:00:00 is
// midnight as an end.
func parseWindow(s string) (model.TimeWindow, error) {
	from, to, _ := strings.Cut(s, "-")
	first, err1 := parseClock(from)
	last, err2 := parseClock(to)
	if to == "24:00:00" {
		last, err2 = 0, nil
	}
	if err1 != nil || err2 != nil {
		return model.TimeWindow{}, fmt.Errorf("%q is not a window HH:MM:SS-HH:MM:SS", s)
	}
	return model.TimeWindow{First: first, Last: last}, nil
}

func parseClock(s string) (time.Duration, error) {
	t, err := time.Parse(time.TimeOnly, s)
	if err != nil || len(s) != len(time.TimeOnly) {
		return 0, fmt.Errorf("%q is not a time HH:MM:SS", s)
	}
	h, m, sec := t.Clock()
	return time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(sec)*time.Second, nil
}
