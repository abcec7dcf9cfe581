package policy

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/model"
)

// refHTTP judges by a request. What is said in two ways, of which one is in the
// values, is maybe: a header with two lines, a host with a port.
func refHTTP(h *model.HTTPMatch, r *Request, attribute func(bool, truth)) {
	req := r.HTTP
	both := func(in, not []model.StringMatch, value func([]model.StringMatch) truth) {
		attribute(len(in) > 0, value(in))
		attribute(len(not) > 0, opposite(value(not)))
	}
	about := func(value func([]model.StringMatch) truth) func([]model.StringMatch) truth {
		if req == nil {
			return func([]model.StringMatch) truth { return isMaybe }
		}
		return value
	}
	plainText := func(s func() string) func([]model.StringMatch) truth {
		return about(func(values []model.StringMatch) truth {
			return anyOf(values, func(m model.StringMatch) truth { return truthOf(refText(m, s())) })
		})
	}
	both(h.Methods, h.NotMethods, plainText(func() string { return req.Method }))
	both(h.Paths, h.NotPaths, plainText(func() string { return req.Path }))
	both(h.Hosts, h.NotHosts, about(func(values []model.StringMatch) truth { return refHost(values, req.Host) }))
	both(h.RequestPrincipals, h.NotRequestPrincipals, plainText(func() string { return req.Claims.Principal() }))
	both(h.Audiences, h.NotAudiences, about(func(values []model.StringMatch) truth { return refClaim(values, req.Claims.Find("aud")) }))
	both(h.Presenters, h.NotPresenters, about(func(values []model.StringMatch) truth { return refClaim(values, req.Claims.Find("azp")) }))
	header := func(k model.HeaderMatch) truth {
		return about(func([]model.StringMatch) truth { return refHeader(k, req.Headers) })(nil)
	}
	attribute(len(h.Headers) > 0, allOf(h.Headers, header))
	attribute(len(h.NotHeaders) > 0, allOf(h.NotHeaders, func(k model.HeaderMatch) truth { return opposite(header(k)) }))
	claim := func(k model.ClaimMatch) truth {
		return about(func([]model.StringMatch) truth { return refClaim(k.Values, req.Claims.Find(k.Path...)) })(nil)
	}
	attribute(len(h.Claims) > 0, allOf(h.Claims, claim))
	attribute(len(h.NotClaims) > 0, allOf(h.NotClaims, func(k model.ClaimMatch) truth { return opposite(claim(k)) }))
	attribute(len(h.RemoteIPs) > 0, refRemote(h.RemoteIPs, h.Forwarding, r))
	attribute(len(h.NotRemoteIPs) > 0, opposite(refRemote(h.NotRemoteIPs, h.Forwarding, r)))
	both(h.ServerNames, h.NotServerNames, func(values []model.StringMatch) truth {
		if r.ServerName == "" {
			return isMaybe
		}
		return refHost(values, r.ServerName)
	})
}

// refRemote: what a trusted caller does not say is maybe.
func refRemote(prefixes []netip.Prefix, f model.Forwarding, r *Request) truth {
	inside := func(address string) truth {
		return anyOf(prefixes, func(p netip.Prefix) truth {
			_, block, err := net.ParseCIDR(p.String())
			return truthOf(err == nil && block.Contains(net.ParseIP(address)))
		})
	}
	trusts := f.Proxies > 0 && r.Identity != model.Identity{} && slices.ContainsFunc(f.Callers, func(m model.StringMatch) bool { return glob(m, r.Identity.Principal()) })
	switch {
	case !trusts:
		return inside(r.Source.String())
	case r.HTTP == nil:
		return isMaybe
	}
	var lines []string
	for _, h := range r.HTTP.Headers {
		if strings.EqualFold(h.Name, "X-Forwarded-For") {
			lines = append(lines, h.Value)
		}
	}
	list := strings.Split(strings.ReplaceAll(strings.Join(lines, ","), " ", ""), ",")
	at := len(list) - int(f.Proxies)
	if at < 0 || net.ParseIP(list[at]) == nil {
		return isMaybe
	}
	return inside(list[at])
}

func refText(m model.StringMatch, s string) bool {
	if m.Kind != model.MatchTemplate {
		return glob(m, s)
	}
	expr := strings.NewReplacer(`\{\*\}`, "[^/]+", `\{\*\*\}`, ".*").Replace(regexp.QuoteMeta(m.Value))
	return regexp.MustCompile("^" + expr + "$").MatchString(s)
}

func refHost(values []model.StringMatch, host string) truth {
	fold := func(s string) truth {
		return anyOf(values, func(m model.StringMatch) truth {
			m.Value = strings.ToLower(m.Value)
			return truthOf(glob(m, strings.ToLower(s)))
		})
	}
	bare, _, _ := strings.Cut(host, ":")
	switch {
	case fold(host) == isYes:
		return isYes
	case fold(strings.TrimSuffix(bare, ".")) == isYes:
		return isMaybe
	}
	return isNo
}

func refHeader(k model.HeaderMatch, fields []HeaderField) truth {
	var lines []string
	for _, f := range fields {
		if strings.EqualFold(f.Name, k.Name) {
			lines = append(lines, f.Value)
		}
	}
	hit := func(line string) truth {
		return anyOf(k.Values, func(m model.StringMatch) truth { return truthOf(glob(m, line)) })
	}
	switch {
	case len(lines) == 0:
		return isNo
	case allOf(lines, hit) == isYes:
		return isYes
	case anyOf(lines, hit) == isYes, len(lines) > 1 && hit(strings.Join(lines, ",")) == isYes:
		return isMaybe
	}
	return isNo
}

func refClaim(values []model.StringMatch, claim any) truth {
	list, ok := claim.([]any)
	if !ok {
		list = []any{claim}
	}
	return anyOf(list, func(element any) truth {
		switch v := element.(type) {
		case nil:
			if !ok {
				return isNo
			}
		case string:
			return anyOf(values, func(m model.StringMatch) truth { return truthOf(glob(m, v)) })
		}
		return isMaybe
	})
}

func drawHTTPMatch(t *rapid.T) *model.HTTPMatch {
	h := &model.HTTPMatch{}
	headers := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) model.HeaderMatch {
		return model.HeaderMatch{Name: rapid.SampledFrom([]string{"X-A", "x-b"}).Draw(t, "name"), Values: drawSome(t, "a", "b*", "*", "a,b", "*,b")}
	}), 1, 2)
	claims := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) model.ClaimMatch {
		return model.ClaimMatch{Path: rapid.SampledFrom([][]string{{"scope"}, {"n", "g"}, {"sub"}, {"n"}}).Draw(t, "path"), Values: drawSome(t, "read", "w*", "*", "me")}
	}), 1, 2)
	paths := func() []model.StringMatch {
		return rapid.SliceOfN(rapid.SampledFrom([]model.StringMatch{
			{Value: "/a"}, {Kind: model.MatchPrefix, Value: "/a/"}, {Kind: model.MatchSuffix, Value: "b"}, {Kind: model.MatchPresence},
			{Kind: model.MatchTemplate, Value: "/a/{*}"}, {Kind: model.MatchTemplate, Value: "/a/{**}"}, {Kind: model.MatchTemplate, Value: "/{*}/b/{**}"}, {Kind: model.MatchTemplate, Value: "/a/{**}/"},
		}), 1, 2).Draw(t, "paths")
	}
	for range rapid.IntRange(1, 2).Draw(t, "http attributes") {
		switch rapid.IntRange(0, 19).Draw(t, "http attribute") {
		case 0:
			h.Methods = drawSome(t, "GET", "P*", "*")
		case 1:
			h.NotMethods = drawSome(t, "GET", "P*", "*")
		case 2, 3:
			h.Paths = paths()
		case 4:
			h.NotPaths = paths()
		case 5:
			h.Hosts = drawSome(t, "Example.com", "*.com", "example.com:*", "*")
		case 6:
			h.NotHosts = drawSome(t, "Example.com", "*.com", "example.com:*", "*")
		case 7:
			h.RequestPrincipals = drawSome(t, "https://i/me", "https://i/*", "*/me", "*")
		case 8:
			h.NotRequestPrincipals = drawSome(t, "https://i/me", "https://i/*", "*/me", "*")
		case 9:
			h.Audiences = drawSome(t, "x", "y*", "*")
		case 10:
			h.NotAudiences = drawSome(t, "x", "y*", "*")
		case 11:
			h.Presenters = drawSome(t, "x", "*")
		case 12:
			h.Headers = headers.Draw(t, "headers")
		case 13:
			h.NotHeaders = headers.Draw(t, "not headers")
		case 14:
			h.Claims = claims.Draw(t, "claims")
		case 15:
			h.NotClaims = claims.Draw(t, "not claims")
		case 16:
			h.ServerNames = drawSome(t, "example.com", "*")
		case 17:
			h.NotServerNames = drawSome(t, "example.com", "*")
		case 18:
			h.RemoteIPs, h.Forwarding = drawRemote(t)
		case 19:
			h.NotRemoteIPs, h.Forwarding = drawRemote(t)
		}
	}
	return h
}

func drawRemote(t *rapid.T) ([]netip.Prefix, model.Forwarding) {
	return rapid.SliceOfN(rapid.SampledFrom(drawnPrefixes), 1, 2).Draw(t, "remote"), model.Forwarding{
		Proxies: uint32(rapid.IntRange(0, 2).Draw(t, "proxies")), Callers: drawSome(t, "td/*", "*", "*/sa/y"),
	}
}

func drawSome(t *rapid.T, values ...string) []model.StringMatch {
	return texts(rapid.SliceOfN(rapid.SampledFrom(values), 1, 2).Draw(t, "values")...)
}

func drawHTTP(t *rapid.T, r *Request) {
	if rapid.IntRange(0, 3).Draw(t, "tls") == 0 {
		r.ServerName = rapid.SampledFrom([]string{"example.com", "EXAMPLE.com", "other.net"}).Draw(t, "server name")
	}
	if rapid.IntRange(0, 3).Draw(t, "http") == 0 {
		return
	}
	r.HTTP = &HTTPRequest{
		Method: rapid.SampledFrom([]string{"GET", "POST", "PUT", "get"}).Draw(t, "method"),
		Path:   rapid.SampledFrom([]string{"/a", "/a/", "/a/b", "/a/b/c", "/x/b/", "/x/b/c", "/a//"}).Draw(t, "path"),
		Host:   rapid.SampledFrom([]string{"example.com", "EXAMPLE.COM:80", "example.com.", "other.net", ""}).Draw(t, "host"),
		Headers: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) HeaderField {
			return HeaderField{
				Name:  rapid.SampledFrom([]string{"X-A", "x-a", "X-B", "Y"}).Draw(t, "header"),
				Value: rapid.SampledFrom([]string{"a", "b", "bc", "", "a,b"}).Draw(t, "value"),
			}
		}), 0, 3).Draw(t, "fields"),
	}
	for range rapid.IntRange(0, 2).Draw(t, "forwarded") {
		list := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::1", "x", ""}), 1, 2).Draw(t, "forwarded for"), ", ")
		r.HTTP.Headers = append(r.HTTP.Headers, HeaderField{Name: "X-Forwarded-For", Value: list})
	}
	if rapid.Bool().Draw(t, "token") {
		claims := map[string]any{"iss": "https://i", "sub": rapid.SampledFrom([]any{"me", "you", nil, 1.0}).Draw(t, "sub")}
		claims["aud"] = rapid.SampledFrom([]any{"x", []any{"x", "yy"}, []any{"z", true}, nil}).Draw(t, "aud")
		claims["azp"] = rapid.SampledFrom([]any{"x", nil}).Draw(t, "azp")
		claims["scope"] = rapid.SampledFrom([]any{"read write", "read", "", nil, true}).Draw(t, "scope")
		claims["n"] = rapid.SampledFrom([]any{map[string]any{"g": "me"}, map[string]any{"g": []any{"w1", "x"}}, "read", nil}).Draw(t, "nested")
		r.HTTP.Claims = NewClaims(claims, nil)
	}
}
