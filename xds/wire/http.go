package wire

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
)

func encodeHTTPMatch(m *model.HTTPMatch) *tacit.HTTPMatchExtension {
	return &tacit.HTTPMatchExtension{
		Methods:              encodeEach(m.Methods, encodeString),
		NotMethods:           encodeEach(m.NotMethods, encodeString),
		Paths:                encodeEach(m.Paths, encodePath),
		NotPaths:             encodeEach(m.NotPaths, encodePath),
		Hosts:                encodeEach(m.Hosts, encodeString),
		NotHosts:             encodeEach(m.NotHosts, encodeString),
		RequestPrincipals:    encodeEach(m.RequestPrincipals, encodeString),
		NotRequestPrincipals: encodeEach(m.NotRequestPrincipals, encodeString),
		Audiences:            encodeEach(m.Audiences, encodeString),
		NotAudiences:         encodeEach(m.NotAudiences, encodeString),
		Presenters:           encodeEach(m.Presenters, encodeString),
		NotPresenters:        encodeEach(m.NotPresenters, encodeString),
		Headers:              encodeEach(m.Headers, encodeHeader),
		NotHeaders:           encodeEach(m.NotHeaders, encodeHeader),
		Claims:               encodeEach(m.Claims, encodeClaim),
		NotClaims:            encodeEach(m.NotClaims, encodeClaim),
		ServerNames:          encodeEach(m.ServerNames, encodeString),
		NotServerNames:       encodeEach(m.NotServerNames, encodeString),
		RemoteIps:            encodeEach(m.RemoteIPs, encodePrefix),
		NotRemoteIps:         encodeEach(m.NotRemoteIPs, encodePrefix),
		Forwarding:           encodeForwarding(m.Forwarding),
	}
}

func encodeForwarding(f model.Forwarding) *tacit.Forwarding {
	if f.Proxies == 0 && len(f.Callers) == 0 {
		return nil
	}
	return &tacit.Forwarding{Proxies: f.Proxies, Callers: encodeEach(f.Callers, encodeString)}
}

func decodeHTTPMatch(d matchDecoder, e *security.Extension, out *model.Match) {
	var ext tacit.HTTPMatchExtension
	if err := e.GetConfig().UnmarshalTo(&ext); err != nil {
		d.unknown.add("%s: %v", d.path, err)
		return
	}
	*d.unknown = append(*d.unknown, anyUnknown(ext.ProtoReflect(), d.path))
	if proto.Size(&ext) == 0 {
		d.unknown.add("%s: no attribute", d.path)
	}
	out.HTTP = &model.HTTPMatch{
		Methods:              values(d, "methods", ext.GetMethods(), decodeString),
		NotMethods:           values(d, "not_methods", ext.GetNotMethods(), decodeString),
		Paths:                values(d, "paths", ext.GetPaths(), decodePath),
		NotPaths:             values(d, "not_paths", ext.GetNotPaths(), decodePath),
		Hosts:                values(d, "hosts", ext.GetHosts(), decodeString),
		NotHosts:             values(d, "not_hosts", ext.GetNotHosts(), decodeString),
		RequestPrincipals:    values(d, "request_principals", ext.GetRequestPrincipals(), decodeString),
		NotRequestPrincipals: values(d, "not_request_principals", ext.GetNotRequestPrincipals(), decodeString),
		Audiences:            values(d, "audiences", ext.GetAudiences(), decodeString),
		NotAudiences:         values(d, "not_audiences", ext.GetNotAudiences(), decodeString),
		Presenters:           values(d, "presenters", ext.GetPresenters(), decodeString),
		NotPresenters:        values(d, "not_presenters", ext.GetNotPresenters(), decodeString),
		Headers:              values(d, "headers", ext.GetHeaders(), decodeHeader),
		NotHeaders:           values(d, "not_headers", ext.GetNotHeaders(), decodeHeader),
		Claims:               values(d, "claims", ext.GetClaims(), decodeClaim),
		NotClaims:            values(d, "not_claims", ext.GetNotClaims(), decodeClaim),
		ServerNames:          values(d, "server_names", ext.GetServerNames(), decodeString),
		NotServerNames:       values(d, "not_server_names", ext.GetNotServerNames(), decodeString),
		RemoteIPs:            values(d, "remote_ips", ext.GetRemoteIps(), decodePrefix),
		NotRemoteIPs:         values(d, "not_remote_ips", ext.GetNotRemoteIps(), decodePrefix),
		Forwarding: model.Forwarding{
			Proxies: ext.GetForwarding().GetProxies(),
			Callers: values(d, "forwarding.callers", ext.GetForwarding().GetCallers(), decodeString),
		},
	}
}

func encodePath(m model.StringMatch) *tacit.PathMatch {
	if m.Kind == model.MatchTemplate {
		return &tacit.PathMatch{Kind: &tacit.PathMatch_Template{Template: m.Value}}
	}
	return &tacit.PathMatch{Kind: &tacit.PathMatch_Text{Text: encodeString(m)}}
}

func decodePath(m *tacit.PathMatch) (model.StringMatch, error) {
	switch v := m.GetKind().(type) {
	case *tacit.PathMatch_Text:
		return decodeString(v.Text)
	case *tacit.PathMatch_Template:
		out, err := model.ParsePathMatch(v.Template)
		if err == nil && out.Kind != model.MatchTemplate {
			err = fmt.Errorf("%q is no template", v.Template)
		}
		return out, err
	}
	return model.StringMatch{}, errors.New("no kind of comparison")
}

func encodeHeader(h model.HeaderMatch) *tacit.LabelMatch {
	return &tacit.LabelMatch{Key: h.Name, Values: encodeEach(h.Values, encodeString)}
}

func decodeHeader(h *tacit.LabelMatch) (model.HeaderMatch, error) {
	l, err := decodeLabel(h)
	return model.HeaderMatch{Name: l.Key, Values: l.Values}, err
}

func encodeClaim(c model.ClaimMatch) *tacit.ClaimMatch {
	return &tacit.ClaimMatch{Path: c.Path, Values: encodeEach(c.Values, encodeString)}
}

func decodeClaim(c *tacit.ClaimMatch) (model.ClaimMatch, error) {
	if len(c.GetPath()) == 0 || len(c.GetValues()) == 0 {
		return model.ClaimMatch{}, errors.New("path or values are missing")
	}
	v, err := decodeEach("values", c.GetValues(), decodeString)
	return model.ClaimMatch{Path: c.GetPath(), Values: v}, err
}

// encodeHTTPPolicy is nil for the actions that the Authorization has itself.
func encodeHTTPPolicy(p *model.Policy) (*tacit.HTTPPolicyExtension, error) {
	switch p.Action {
	case model.ActionAudit:
		return &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_Audit{Audit: &tacit.Audit{}}}, nil
	case model.ActionCustom:
		if p.Provider == nil {
			return &tacit.HTTPPolicyExtension{}, nil // decodes as an error
		}
		return &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_Custom{Custom: encodeProvider(p.Provider)}}, nil
	case model.ActionAuthenticate:
		if p.Authentication == nil {
			return &tacit.HTTPPolicyExtension{}, nil
		}
		return &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_Authentication{
			Authentication: &tacit.RequestAuthentication{Rules: encodeEach(p.Authentication.Rules, encodeJWTRule)},
		}}, nil
	case model.ActionLimit:
		if p.RateLimit == nil {
			return &tacit.HTTPPolicyExtension{}, nil
		}
		limits, err := encodeRateLimit(p.RateLimit)
		return &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_RateLimit{RateLimit: limits}}, err
	case model.ActionAllow, model.ActionDeny:
	}
	return nil, nil
}

// decodeHTTPPolicy leaves the policy a denial if it cannot be understood.
func decodeHTTPPolicy(e *security.Extension, path string, out *model.Policy) (unknown reasons) {
	var ext tacit.HTTPPolicyExtension
	if err := e.GetConfig().UnmarshalTo(&ext); err != nil {
		unknown.add("%s.config: %v", path, err)
		return unknown
	}
	unknown = append(unknown, anyUnknown(ext.ProtoReflect(), path+".config"))
	action, err := model.ActionDeny, error(nil)
	switch v := ext.GetAction().(type) {
	case *tacit.HTTPPolicyExtension_Audit:
		action = model.ActionAudit
	case *tacit.HTTPPolicyExtension_Custom:
		action = model.ActionCustom
		out.Provider, err = decodeProvider(v.Custom)
	case *tacit.HTTPPolicyExtension_Authentication:
		action, out.Authentication = model.ActionAuthenticate, &model.RequestAuthentication{}
		out.Authentication.Rules, err = decodeEach("rules", v.Authentication.GetRules(), decodeJWTRule)
	case *tacit.HTTPPolicyExtension_RateLimit:
		action = model.ActionLimit
		out.RateLimit, err = decodeRateLimit(v.RateLimit)
	default:
		err = errors.New("no action that is known")
	}
	if err != nil {
		unknown.add("%s.config: %v", path, err)
	}
	if unknown.first() != "" {
		out.Provider, out.Authentication, out.RateLimit = nil, nil, nil
		return unknown
	}
	out.Action = action
	return nil
}

func encodeProvider(p *model.Provider) *tacit.Provider {
	return &tacit.Provider{
		Name: p.Name, Protocol: tacit.Provider_Protocol(p.Protocol), Host: p.Host, Port: uint32(p.Port),
		TimeoutMs: encodeMilliseconds(p.Timeout), FailOpen: p.FailOpen, StatusOnError: uint32(p.StatusOnError),
		Tls: encodeTLS(p.TLS, p.ServerName, p.Roots), PathPrefix: p.PathPrefix,
		IncludeRequestHeaders:      encodeEach(p.IncludeRequestHeaders, encodeString),
		IncludeAdditionalHeaders:   p.IncludeAdditionalHeaders,
		HeadersToUpstreamOnAllow:   encodeEach(p.HeadersToUpstreamOnAllow, encodeString),
		HeadersToDownstreamOnDeny:  encodeEach(p.HeadersToDownstreamOnDeny, encodeString),
		HeadersToDownstreamOnAllow: encodeEach(p.HeadersToDownstreamOnOK, encodeString),
		IncludeBody:                p.IncludeBody, AllowPartial: p.AllowPartial, BodyAsBytes: p.BodyAsBytes,
	}
}

func decodeProvider(p *tacit.Provider) (*model.Provider, error) {
	out := &model.Provider{
		Name: p.GetName(), Protocol: model.ProviderProtocol(p.GetProtocol()), Host: p.GetHost(),
		FailOpen: p.GetFailOpen(), StatusOnError: uint16(p.GetStatusOnError()),
		TLS: p.GetTls() != nil, ServerName: p.GetTls().GetServerName(), Roots: p.GetTls().GetRoots(),
		PathPrefix: p.GetPathPrefix(), IncludeAdditionalHeaders: p.GetIncludeAdditionalHeaders(),
		IncludeBody: p.GetIncludeBody(), AllowPartial: p.GetAllowPartial(), BodyAsBytes: p.GetBodyAsBytes(),
	}
	if p.GetName() == "" || p.GetHost() == "" || !known(p.GetProtocol()) {
		return nil, errors.New("provider: name or host is missing, or its protocol is unknown")
	}
	if s := p.GetStatusOnError(); s != 0 && (s < 400 || s > 599) {
		return nil, fmt.Errorf("provider: status_on_error %d is none of an error", s)
	}
	var errs [6]error
	out.Port, errs[0] = portNumber(p.GetPort())
	out.Timeout, errs[1] = decodeMilliseconds(p.GetTimeoutMs())
	out.IncludeRequestHeaders, errs[2] = decodeEach("include_request_headers", p.GetIncludeRequestHeaders(), decodeString)
	out.HeadersToUpstreamOnAllow, errs[3] = decodeEach("headers_to_upstream_on_allow", p.GetHeadersToUpstreamOnAllow(), decodeString)
	out.HeadersToDownstreamOnDeny, errs[4] = decodeEach("headers_to_downstream_on_deny", p.GetHeadersToDownstreamOnDeny(), decodeString)
	out.HeadersToDownstreamOnOK, errs[5] = decodeEach("headers_to_downstream_on_allow", p.GetHeadersToDownstreamOnAllow(), decodeString)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("provider: %w", err)
	}
	return out, nil
}

func encodeTLS(on bool, serverName, roots string) *tacit.TLS {
	if !on {
		return nil
	}
	return &tacit.TLS{ServerName: serverName, Roots: roots}
}

func encodeJWTRule(r model.JWTRule) *tacit.JWTRule {
	return &tacit.JWTRule{
		Issuer: r.Issuer, Audiences: r.Audiences, Keys: r.Keys,
		FromHeaders: encodeEach(r.FromHeaders, func(h model.JWTHeader) *tacit.JWTHeader {
			return &tacit.JWTHeader{Name: h.Name, Prefix: h.Prefix}
		}),
		FromParams: r.FromParams, FromCookies: r.FromCookies, Forward: r.Forward, PayloadHeader: r.PayloadHeader,
		ClaimHeaders: encodeEach(r.ClaimHeaders, func(h model.ClaimHeader) *tacit.ClaimHeader {
			return &tacit.ClaimHeader{Header: h.Header, Claim: h.Claim}
		}),
		SpaceDelimited: r.SpaceDelimited,
	}
}

func decodeJWTRule(r *tacit.JWTRule) (model.JWTRule, error) {
	out := model.JWTRule{
		Issuer: r.GetIssuer(), Audiences: r.GetAudiences(), Keys: r.GetKeys(),
		FromParams: r.GetFromParams(), FromCookies: r.GetFromCookies(), Forward: r.GetForward(),
		PayloadHeader: r.GetPayloadHeader(), SpaceDelimited: r.GetSpaceDelimited(),
	}
	if r.GetIssuer() == "" {
		return out, errors.New("issuer is missing")
	}
	var err1, err2 error
	out.FromHeaders, err1 = decodeEach("from_headers", r.GetFromHeaders(), func(h *tacit.JWTHeader) (model.JWTHeader, error) {
		return model.JWTHeader{Name: h.GetName(), Prefix: h.GetPrefix()}, required(h.GetName())
	})
	out.ClaimHeaders, err2 = decodeEach("claim_headers", r.GetClaimHeaders(), func(h *tacit.ClaimHeader) (model.ClaimHeader, error) {
		return model.ClaimHeader{Header: h.GetHeader(), Claim: h.GetClaim()}, required(h.GetHeader(), h.GetClaim())
	})
	return out, errors.Join(err1, err2)
}

func required(names ...string) error {
	for _, name := range names {
		if name == "" {
			return errors.New("a name is missing")
		}
	}
	return nil
}

func encodeMilliseconds(d time.Duration) uint64 {
	if d <= 0 || d%time.Millisecond != 0 {
		return 0 // decodes as an error
	}
	return uint64(d / time.Millisecond)
}

func decodeMilliseconds(ms uint64) (time.Duration, error) {
	if ms == 0 || ms > math.MaxInt64/uint64(time.Millisecond) {
		return 0, fmt.Errorf("%d ms is no duration above 0", ms)
	}
	return time.Duration(ms) * time.Millisecond, nil
}
