package build

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// http are the attributes of HTTP of the match, made when the first is read.
func (m *matchReader) http() *model.HTTPMatch {
	if m.out.HTTP == nil {
		m.out.HTTP = &model.HTTPMatch{}
	}
	return m.out.HTTP
}

// requests reads the alternatives of an attribute of HTTP.
func requests(m *matchReader, field string, list []string, parse func(string) (model.StringMatch, error), to func(*model.HTTPMatch) *[]model.StringMatch) {
	if len(list) > 0 {
		values(m, to(m.http()), field, list, parse)
	}
}

func (m *matchReader) requestPrincipals(field, notField string, in, not []string) {
	requests(m, field, in, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.RequestPrincipals })
	requests(m, notField, not, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotRequestPrincipals })
}

func (m *matchReader) requestsTo(o *securityv1beta1.Operation) {
	requests(m, "hosts", o.GetHosts(), parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.Hosts })
	requests(m, "notHosts", o.GetNotHosts(), parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotHosts })
	requests(m, "methods", o.GetMethods(), parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.Methods })
	requests(m, "notMethods", o.GetNotMethods(), parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotMethods })
	requests(m, "paths", o.GetPaths(), parsePath, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.Paths })
	requests(m, "notPaths", o.GetNotPaths(), parsePath, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotPaths })
}

func parsePath(s string) (model.StringMatch, error) {
	if s == "" {
		return model.StringMatch{}, errors.New("an empty value")
	}
	return model.ParsePathMatch(s)
}

// requestCondition reads a `when` about requests; false if it is none.
func (m *matchReader) requestCondition(key string, in, not []string) bool {
	header, isHeader := bracketed(key, "request.headers")
	claims, isClaim := bracketed(key, "request.auth.claims")
	switch {
	case key == "request.auth.principal":
		m.requestPrincipals("values", "notValues", in, not)
	case key == "request.auth.audiences":
		requests(m, "values", in, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.Audiences })
		requests(m, "notValues", not, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotAudiences })
	case key == "request.auth.presenter":
		requests(m, "values", in, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.Presenters })
		requests(m, "notValues", not, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotPresenters })
	case key == "connection.sni":
		requests(m, "values", in, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.ServerNames })
		requests(m, "notValues", not, parseString, func(h *model.HTTPMatch) *[]model.StringMatch { return &h.NotServerNames })
	case isHeader && len(header) == 1:
		m.headers(header[0], in, not)
	case isClaim:
		m.claims(claims, in, not)
	default:
		return false
	}
	return true
}

func (m *matchReader) headers(name string, in, not []string) {
	if !headerName.MatchString(name) {
		m.invalid("key", "%q is not the name of a header", name)
		return
	}
	if len(in) > 0 {
		h := model.HeaderMatch{Name: name}
		values(m, &h.Values, "values", in, parseString)
		m.http().Headers = append(m.http().Headers, h)
	}
	if len(not) > 0 {
		h := model.HeaderMatch{Name: name}
		values(m, &h.Values, "notValues", not, parseString)
		m.http().NotHeaders = append(m.http().NotHeaders, h)
	}
}

func (m *matchReader) claims(path, in, not []string) {
	if len(in) > 0 {
		c := model.ClaimMatch{Path: path}
		values(m, &c.Values, "values", in, parseString)
		m.http().Claims = append(m.http().Claims, c)
	}
	if len(not) > 0 {
		c := model.ClaimMatch{Path: path}
		values(m, &c.Values, "notValues", not, parseString)
		m.http().NotClaims = append(m.http().NotClaims, c)
	}
}

// headerName is a token of RFC 9110. Pseudo-headers have fields of their own.
var headerName = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

// bracketed reads PREFIX[A][B].
func bracketed(key, prefix string) (path []string, ok bool) {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok || !strings.HasPrefix(rest, "[") || !strings.HasSuffix(rest, "]") {
		return nil, false
	}
	path = strings.Split(rest[1:len(rest)-1], "][")
	for _, part := range path {
		if part == "" || strings.ContainsAny(part, "[]") {
			return nil, false
		}
	}
	return path, true
}

// action reads what the policy does, and sets what a provider is asked.
func (b *policyBuilder) action(p *model.Policy, spec *securityv1beta1.AuthorizationPolicy, st *PolicyStatus) {
	switch spec.Action {
	case securityv1beta1.AuthorizationPolicy_ALLOW:
		p.Action = model.ActionAllow
	case securityv1beta1.AuthorizationPolicy_DENY:
		p.Action = model.ActionDeny
	case securityv1beta1.AuthorizationPolicy_AUDIT:
		p.Action = model.ActionAudit
	case securityv1beta1.AuthorizationPolicy_CUSTOM:
		p.Action = model.ActionCustom
		if p.Provider = b.providers[spec.GetProvider().GetName()]; p.Provider == nil {
			p.Action = model.ActionDeny
			st.say("spec.provider.name: the configuration of the mesh has no provider %q: what this policy matches is denied", spec.GetProvider().GetName())
		}
	default:
		p.Action = model.ActionDeny
		p.Unknown = fmt.Sprintf("spec.action: %d", spec.Action)
		st.say("spec.action: %d is not known: every connection is denied", spec.Action)
	}
	if spec.Action != securityv1beta1.AuthorizationPolicy_CUSTOM && spec.GetProvider() != nil {
		st.say("spec.provider: not used: it belongs to the action CUSTOM")
	}
}
