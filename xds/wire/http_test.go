package wire

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
)

var (
	pathMatch = rapid.OneOf(stringMatch, rapid.Map(
		rapid.SampledFrom([]string{"/{*}", "/a/{**}", "/{*}/b/{**}/c"}),
		func(s string) model.StringMatch { return model.StringMatch{Kind: model.MatchTemplate, Value: s} }))
	headerMatch = rapid.Custom(func(t *rapid.T) model.HeaderMatch {
		return model.HeaderMatch{Name: part.Draw(t, "name"), Values: rapid.SliceOfN(stringMatch, 1, 3).Draw(t, "values")}
	})
	claimMatch = rapid.Custom(func(t *rapid.T) model.ClaimMatch {
		return model.ClaimMatch{Path: rapid.SliceOfN(text, 1, 3).Draw(t, "path"), Values: rapid.SliceOfN(stringMatch, 1, 3).Draw(t, "values")}
	})
	milliseconds = rapid.Map(rapid.Int64Range(1, 1<<40), func(n int64) time.Duration { return time.Duration(n) * time.Millisecond })
	nonZero      = rapid.Uint64Min(1)
	jwtRule      = rapid.Custom(func(t *rapid.T) model.JWTRule {
		header := rapid.Custom(func(t *rapid.T) model.JWTHeader {
			return model.JWTHeader{Name: part.Draw(t, "name"), Prefix: text.Draw(t, "prefix")}
		})
		claim := rapid.Custom(func(t *rapid.T) model.ClaimHeader {
			return model.ClaimHeader{Header: part.Draw(t, "header"), Claim: part.Draw(t, "claim")}
		})
		return model.JWTRule{
			Issuer: part.Draw(t, "issuer"), Audiences: list(t, text, "audiences"), Keys: text.Draw(t, "keys"),
			FromHeaders: list(t, header, "headers"), FromParams: list(t, text, "params"), FromCookies: list(t, text, "cookies"),
			Forward: rapid.Bool().Draw(t, "forward"), PayloadHeader: text.Draw(t, "payload"),
			ClaimHeaders: list(t, claim, "claims"), SpaceDelimited: list(t, text, "delimited"),
		}
	})
)

func drawHTTPMatch(t *rapid.T) *model.HTTPMatch {
	m := &model.HTTPMatch{
		Methods: list(t, stringMatch, "methods"), NotMethods: list(t, stringMatch, "not methods"),
		Paths: list(t, pathMatch, "paths"), NotPaths: list(t, pathMatch, "not paths"),
		Hosts: list(t, stringMatch, "hosts"), NotHosts: list(t, stringMatch, "not hosts"),
		RequestPrincipals: list(t, stringMatch, "principals"), NotRequestPrincipals: list(t, stringMatch, "not principals"),
		Audiences: list(t, stringMatch, "audiences"), NotAudiences: list(t, stringMatch, "not audiences"),
		Presenters: list(t, stringMatch, "presenters"), NotPresenters: list(t, stringMatch, "not presenters"),
		Headers: list(t, headerMatch, "headers"), NotHeaders: list(t, headerMatch, "not headers"),
		Claims: list(t, claimMatch, "claims"), NotClaims: list(t, claimMatch, "not claims"),
		ServerNames: list(t, stringMatch, "names"), NotServerNames: list(t, stringMatch, "not names"),
	}
	if rapid.Bool().Draw(t, "forwarding") {
		m.RemoteIPs, m.NotRemoteIPs = list(t, prefix, "remote"), list(t, prefix, "not remote")
		m.Forwarding = model.Forwarding{Proxies: rapid.Uint32().Draw(t, "proxies"), Callers: list(t, stringMatch, "callers")}
	}
	if reflect.ValueOf(*m).IsZero() {
		m.Methods = []model.StringMatch{{Value: "GET"}}
	}
	return m
}

func drawAction(t *rapid.T, p *model.Policy) {
	p.Action = model.Action(rapid.IntRange(0, int(model.ActionLimit)).Draw(t, "action"))
	switch p.Action {
	case model.ActionCustom:
		p.Provider = drawProvider(t)
	case model.ActionAuthenticate:
		p.Authentication = &model.RequestAuthentication{Rules: list(t, jwtRule, "rules")}
	case model.ActionLimit:
		p.RateLimit = &model.RateLimit{Limits: list(t, rapid.Custom(drawLimit), "limits")}
		if rapid.Bool().Draw(t, "shared") {
			p.RateLimit.Store = &model.LimitStore{Host: part.Draw(t, "host"), Port: port.Draw(t, "port")}
			if rapid.Bool().Draw(t, "tls") {
				p.RateLimit.Store.TLS, p.RateLimit.Store.ServerName, p.RateLimit.Store.Roots = true, text.Draw(t, "server"), text.Draw(t, "roots")
			}
		}
	case model.ActionAllow, model.ActionDeny, model.ActionAudit:
	}
}

func drawProvider(t *rapid.T) *model.Provider {
	p := &model.Provider{
		Name: part.Draw(t, "name"), Host: part.Draw(t, "host"), Port: port.Draw(t, "port"), Timeout: milliseconds.Draw(t, "timeout"),
		Protocol: rapid.SampledFrom([]model.ProviderProtocol{model.ProviderGRPC, model.ProviderHTTP}).Draw(t, "protocol"),
		FailOpen: rapid.Bool().Draw(t, "open"), StatusOnError: rapid.SampledFrom([]uint16{0, 403, 503}).Draw(t, "status"),
		PathPrefix: text.Draw(t, "prefix"), IncludeRequestHeaders: list(t, stringMatch, "headers"),
		IncludeAdditionalHeaders: drawMap(t, text, "more"), HeadersToUpstreamOnAllow: list(t, stringMatch, "up"),
		HeadersToDownstreamOnDeny: list(t, stringMatch, "down"), HeadersToDownstreamOnOK: list(t, stringMatch, "ok"),
		IncludeBody: rapid.Uint32().Draw(t, "body"), AllowPartial: rapid.Bool().Draw(t, "partial"), BodyAsBytes: rapid.Bool().Draw(t, "bytes"),
	}
	if rapid.Bool().Draw(t, "tls") {
		p.TLS, p.ServerName, p.Roots = true, text.Draw(t, "server"), text.Draw(t, "roots")
	}
	return p
}

func drawLimit(t *rapid.T) model.Limit {
	match := rapid.Custom(drawMatch)
	rule := rapid.Custom(func(t *rapid.T) model.Rule {
		m := match.Draw(t, "match")
		m.Unknown = ""
		return model.Rule{Clauses: []model.Clause{{Matches: []model.Match{m}}}}
	})
	l := model.Limit{
		Rules: list(t, rule, "rules"), Unit: model.LimitUnit(rapid.IntRange(0, 2).Draw(t, "unit")),
		Amount: nonZero.Draw(t, "amount"), Interval: milliseconds.Draw(t, "interval"), Burst: nonZero.Draw(t, "burst"),
		Per:         model.LimitKey(rapid.IntRange(0, 3).Draw(t, "per")),
		PerWorkload: rapid.Bool().Draw(t, "per workload"),
	}
	if l.Per >= model.LimitPerClaim {
		l.Key = part.Draw(t, "key")
	}
	return l
}

// fullHTTP are an authorization's extensions of each action, with every kind of
// message that they can hold.
func fullHTTP(t *testing.T) map[string]proto.Message {
	str := []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "x"}}}
	rule := &security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{Principals: str}}}}}
	tls := &tacit.TLS{ServerName: "s"}
	out := map[string]proto.Message{
		"audit": &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_Audit{Audit: &tacit.Audit{}}},
		"custom": &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_Custom{Custom: &tacit.Provider{
			Name: "p", Host: "h", Port: 1, TimeoutMs: 1, Tls: tls, IncludeRequestHeaders: str,
		}}},
		"authentication": &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_Authentication{Authentication: &tacit.RequestAuthentication{
			Rules: []*tacit.JWTRule{{
				Issuer: "i", FromHeaders: []*tacit.JWTHeader{{Name: "n"}}, ClaimHeaders: []*tacit.ClaimHeader{{Header: "h", Claim: "c"}},
			}},
		}}},
		"limit": &tacit.HTTPPolicyExtension{Action: &tacit.HTTPPolicyExtension_RateLimit{RateLimit: &tacit.RateLimit{
			Limits: []*tacit.Limit{{
				Rules: []*security.Rule{rule}, Amount: 1, IntervalMs: 1, Burst: 1,
			}},
			Store: &tacit.LimitStore{Host: "h", Port: 1, Tls: tls},
		}}},
		"match": &tacit.HTTPMatchExtension{
			Methods: str, Paths: []*tacit.PathMatch{{Kind: &tacit.PathMatch_Template{Template: "/{*}"}}},
			Headers: []*tacit.LabelMatch{{Key: "k", Values: str}}, Claims: []*tacit.ClaimMatch{{Path: []string{"a"}, Values: str}},
			RemoteIps: []*security.Address{{Address: []byte{10, 0, 0, 0}, Length: 8}}, Forwarding: &tacit.Forwarding{Proxies: 1, Callers: str},
		},
	}
	for name, m := range out {
		out[name] = proto.Clone(m)
		if p := decodeHTTP(t, name, m); len(unknowns(p)) > 0 {
			t.Fatalf("%s: unknown: %v", name, unknowns(p))
		}
	}
	return out
}

// decodeHTTP decodes an authorization with this extension.
func decodeHTTP(t *testing.T, name string, ext proto.Message) *model.Policy {
	t.Helper()
	a := &security.Authorization{Name: "p", Namespace: "ns", Action: security.Action_DENY}
	extensions := []*security.Extension{{Name: httpExtension, Config: mustPack(ext)}}
	if name == "match" {
		a.Rules = []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{Extensions: extensions}}}}}}
	} else {
		a.Extensions = extensions
	}
	return decode(t, a)
}

// A field of a later version in any message of what is about HTTP makes the
// policy deny, or its match unknown.
func TestUnknownFieldsAboutHTTP(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	seen := map[protoreflect.Name]bool{}
	for name, ext := range fullHTTP(t) {
		level := map[bool]string{true: "match", false: "policy"}[name == "match"]
		walk(ext.ProtoReflect(), level, func(m protoreflect.Message, _ string) {
			seen[m.Descriptor().Name()] = true
			m.SetUnknown(later)
			defer m.SetUnknown(nil)
			p := decodeHTTP(t, name, ext)
			if got := unknowns(p); len(got) != 1 || !strings.Contains(got[level], "unknown field 999") || p.Action != model.ActionDeny {
				t.Errorf("%s: unknown field in %s: action %d, unknown %v", name, m.Descriptor().Name(), p.Action, got)
			}
		})
	}
	messages := tacit.File_xds_api_tacit_http_proto.Messages()
	for i := range messages.Len() {
		if name := messages.Get(i).Name(); !seen[name] {
			t.Errorf("no %s was tried", name)
		}
	}
}

func TestStrictnessAboutHTTP(t *testing.T) {
	for name, change := range map[string]func(map[string]proto.Message) (string, string){
		"no action": func(m map[string]proto.Message) (string, string) {
			proto.Reset(m["audit"])
			return "audit", "no action"
		},
		"protocol": func(m map[string]proto.Message) (string, string) {
			m["custom"].(*tacit.HTTPPolicyExtension).GetCustom().Protocol = 9
			return "custom", "protocol is unknown"
		},
		"port": func(m map[string]proto.Message) (string, string) {
			m["custom"].(*tacit.HTTPPolicyExtension).GetCustom().Port = 65537
			return "custom", "65537 is not a port"
		},
		"no time to answer": func(m map[string]proto.Message) (string, string) {
			m["custom"].(*tacit.HTTPPolicyExtension).GetCustom().TimeoutMs = 0
			return "custom", "no duration"
		},
		"issuer": func(m map[string]proto.Message) (string, string) {
			m["authentication"].(*tacit.HTTPPolicyExtension).GetAuthentication().Rules[0].Issuer = ""
			return "authentication", "issuer is missing"
		},
		"unit": func(m map[string]proto.Message) (string, string) {
			m["limit"].(*tacit.HTTPPolicyExtension).GetRateLimit().Limits[0].Unit = 9
			return "limit", "unit 9"
		},
		"amount": func(m map[string]proto.Message) (string, string) {
			m["limit"].(*tacit.HTTPPolicyExtension).GetRateLimit().Limits[0].Amount = 0
			return "limit", "amount or burst is 0"
		},
		"interval": func(m map[string]proto.Message) (string, string) {
			m["limit"].(*tacit.HTTPPolicyExtension).GetRateLimit().Limits[0].IntervalMs = 1 << 62
			return "limit", "no duration"
		},
		"nameless key": func(m map[string]proto.Message) (string, string) {
			m["limit"].(*tacit.HTTPPolicyExtension).GetRateLimit().Limits[0].Per = tacit.Limit_HEADER
			return "limit", "name is missing"
		},
		"template": func(m map[string]proto.Message) (string, string) {
			m["match"].(*tacit.HTTPMatchExtension).Paths[0] = &tacit.PathMatch{Kind: &tacit.PathMatch_Template{Template: "/{*}x"}}
			return "match", "paths[0]"
		},
		"header's name": func(m map[string]proto.Message) (string, string) {
			m["match"].(*tacit.HTTPMatchExtension).Headers[0].Key = ""
			return "match", "headers[0]"
		},
		"claim's path": func(m map[string]proto.Message) (string, string) {
			m["match"].(*tacit.HTTPMatchExtension).Claims[0].Path = nil
			return "match", "claims[0]"
		},
		"no attribute": func(m map[string]proto.Message) (string, string) {
			proto.Reset(m["match"])
			return "match", "no attribute"
		},
	} {
		full := fullHTTP(t)
		which, reason := change(full)
		p := decodeHTTP(t, which, full[which])
		got := unknowns(p)
		if text := got["policy"] + got["match"]; len(got) != 1 || !strings.Contains(text, reason) || p.Action != model.ActionDeny {
			t.Errorf("%s: action %d, unknown %v, want %q", name, p.Action, got, reason)
		}
	}
}

// What proxies without HTTP are sent is what layer 4 makes of the policy.
func TestLayer4Dialect(t *testing.T) {
	get := &model.HTTPMatch{Methods: []model.StringMatch{{Value: "GET"}}}
	labels := []model.LabelMatch{{Key: "a", Values: []model.StringMatch{{Value: "x"}}}}
	mixed := model.Match{DestinationPorts: []uint16{80}, SourceLabels: labels, HTTP: get}
	rest := model.Match{DestinationPorts: []uint16{80}, SourceLabels: labels}
	of := func(matches ...model.Match) []model.Rule {
		return []model.Rule{{Clauses: []model.Clause{{Matches: matches}}}}
	}
	for _, test := range []struct {
		name string
		in   model.Policy
		want model.Policy
	}{
		{"ALLOW", model.Policy{Rules: of(mixed, rest)}, model.Policy{Rules: of(rest)}},
		{"ALLOW of HTTP alone", model.Policy{Rules: of(mixed)}, model.Policy{}},
		{"DENY", model.Policy{Action: model.ActionDeny, Rules: of(mixed)}, model.Policy{Action: model.ActionDeny, Rules: of(rest)}},
		{"DENY of HTTP alone", model.Policy{Action: model.ActionDeny, Rules: of(model.Match{HTTP: get})}, model.Policy{Action: model.ActionDeny, Rules: of()}},
		{"labels alone", model.Policy{Rules: of(rest)}, model.Policy{Rules: of(rest)}},
		{"AUDIT", model.Policy{Action: model.ActionAudit, Rules: of(rest)}, model.Policy{Action: model.ActionDeny}},
		{"CUSTOM", model.Policy{Action: model.ActionCustom, Provider: &model.Provider{}, Rules: of(mixed)}, model.Policy{Action: model.ActionDeny, Rules: of(rest)}},
		{"tokens", model.Policy{Action: model.ActionAuthenticate, Authentication: &model.RequestAuthentication{}}, model.Policy{Action: model.ActionDeny}},
		{"DENY on a port", model.Policy{Action: model.ActionDeny, Ports: []uint16{80}, Rules: []model.Rule{{}}}, model.Policy{Action: model.ActionDeny, Rules: of(model.Match{DestinationPorts: []uint16{80}})}},
		{"ALLOW on a port", model.Policy{Ports: []uint16{80}, Rules: of(rest)}, model.Policy{Rules: of(rest)}},
		{"a limit", model.Policy{Action: model.ActionLimit, RateLimit: &model.RateLimit{}}, model.Policy{Action: model.ActionDeny}},
	} {
		if diff := cmp.Diff(&test.want, For(&test.in, DialectLayer4)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		if got := For(&test.in, DialectFull); got != &test.in {
			t.Errorf("%s: changed for a proxy that understands all of it: %+v", test.name, got)
		}
	}
}

func TestDialects(t *testing.T) {
	for _, test := range []struct {
		announced string
		aware     bool
		want      Dialect
	}{
		{"", false, DialectPlain},
		{"", true, DialectLayer4},
		{"tacit.mesh/match=1,tacit.mesh/policy=1,tacit.mesh/service=1,tacit.mesh/workload=1", true, DialectLayer4},
		{Extensions(), true, DialectFull},
		{"tacit.mesh/http=2", true, DialectFull},
		{"tacit.mesh/http", true, DialectLayer4},
	} {
		if got := DialectOf(test.announced, test.aware); got != test.want {
			t.Errorf("%q: %d, want %d", test.announced, got, test.want)
		}
	}
}
