package wire

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/api/tacit"
	"github.com/tacit-mesh/tacit/xds/model"
)

// fullAuthorization has every kind of message that a policy can hold.
func fullAuthorization(ext *tacit.MatchExtension) *security.Authorization {
	strs := []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}}
	addrs := []*security.Address{{Address: []byte{10, 0, 0, 0}, Length: 8}}
	accounts := []*security.ServiceAccountMatch{{Namespace: "ns", ServiceAccount: "sa"}}
	match := &security.Match{
		Namespaces: strs, NotNamespaces: strs, Principals: strs, NotPrincipals: strs,
		SourceIps: addrs, NotSourceIps: addrs, DestinationIps: addrs, NotDestinationIps: addrs,
		DestinationPorts: []uint32{80}, NotDestinationPorts: []uint32{81},
		ServiceAccounts: accounts, NotServiceAccounts: accounts,
		Extensions: []*security.Extension{{Name: matchExtension, Config: mustPack(ext)}},
	}
	return proto.Clone(&security.Authorization{
		Name: "p", Namespace: "ns", Scope: security.Scope_NAMESPACE, Action: security.Action_ALLOW,
		Rules:      []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{match}}}}},
		Extensions: []*security.Extension{{Name: policyExtension, Config: mustPack(&tacit.PolicyExtension{})}},
	}).(*security.Authorization) // cloned: no message stands in two places
}

func fullExtension() *tacit.MatchExtension {
	labels := []*tacit.LabelMatch{{Key: "app", Values: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "x"}}}}}
	times := []*tacit.TimeWindow{{First: 1, Last: 2}}
	return proto.Clone(&tacit.MatchExtension{
		SourceLabels: labels, NotSourceLabels: labels, Times: times, NotTimes: times,
	}).(*tacit.MatchExtension)
}

func mustPack(m proto.Message) *anypb.Any {
	a, err := pack(m)
	if err != nil {
		panic(err)
	}
	return a
}

func decode(t *testing.T, a *security.Authorization) *model.Policy {
	t.Helper()
	p, err := DecodePolicy("ns/p", mustPack(a))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// unknowns are the reasons by level; a level without one is absent.
func unknowns(p *model.Policy) map[string]string {
	out := map[string]string{}
	note := func(level, reason string) {
		if reason != "" {
			out[level] = reason
		}
	}
	note("policy", p.Unknown)
	for _, r := range p.Rules {
		note("rule", r.Unknown)
		for _, c := range r.Clauses {
			note("clause", c.Unknown)
			for _, m := range c.Matches {
				note("match", m.Unknown)
			}
		}
	}
	return out
}

func TestEverythingKnown(t *testing.T) {
	if got := unknowns(decode(t, fullAuthorization(fullExtension()))); len(got) > 0 {
		t.Fatalf("unknown in a policy of known fields alone: %v", got)
	}
}

// TestUnknownFieldAnywhere puts a field of a later version into every message
// of a policy in turn.
func TestUnknownFieldAnywhere(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	levels := map[protoreflect.Name]string{"Authorization": "policy", "Rule": "rule", "Clause": "clause"}
	seen := map[protoreflect.Name]int{}
	check := func(changed protoreflect.Message, level string, a *security.Authorization) {
		name := changed.Descriptor().Name()
		if of, ok := levels[name]; ok {
			level = of
		}
		seen[name]++
		got := unknowns(decode(t, a))
		if len(got) != 1 || !strings.Contains(got[level], "unknown field 999") {
			t.Errorf("unknown field in a %s: unknown at %v, want it at the level of the %s", name, got, level)
		}
	}

	a := fullAuthorization(fullExtension())
	walk(a.ProtoReflect(), "match", func(m protoreflect.Message, level string) {
		m.SetUnknown(later)
		check(m, level, a)
		m.SetUnknown(nil)
	})
	ext := fullExtension()
	walk(ext.ProtoReflect(), "match", func(m protoreflect.Message, level string) {
		m.SetUnknown(later)
		check(m, level, fullAuthorization(ext))
		m.SetUnknown(nil)
	})
	extended := fullAuthorization(fullExtension())
	policyExt := &tacit.PolicyExtension{}
	policyExt.ProtoReflect().SetUnknown(later)
	extended.Extensions[0].Config = mustPack(policyExt)
	check(policyExt.ProtoReflect(), "policy", extended)

	want := map[protoreflect.Name]int{
		"Authorization": 1, "Rule": 1, "Clause": 1, "Match": 1, "StringMatch": 6, "Empty": 4, "Address": 4,
		"ServiceAccountMatch": 2, "Extension": 2, "Any": 2, "PolicyExtension": 1, "MatchExtension": 1, "LabelMatch": 2, "TimeWindow": 2,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("messages tried, -want +got:\n%s", diff)
	}
}

// walk visits m and every message in it; those of a policy's own extensions
// belong to its level, all others below a match to the match's.
func walk(m protoreflect.Message, level string, visit func(protoreflect.Message, string)) {
	visit(m, level)
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Message() == nil || !m.Has(field) {
			continue
		}
		below := level
		if m.Descriptor().Name() == "Authorization" && field.Name() == "extensions" {
			below = "policy"
		}
		if !field.IsList() {
			walk(m.Get(field).Message(), below, visit)
			continue
		}
		for j := range m.Get(field).List().Len() {
			walk(m.Get(field).List().Get(j).Message(), below, visit)
		}
	}
}

func TestPolicyStrictness(t *testing.T) {
	type parts struct {
		a *security.Authorization
		m *security.Match
		e *tacit.MatchExtension
	}
	tests := map[string]struct {
		change func(parts)
		level  string
		reason string
	}{
		"scope":                            {func(p parts) { p.a.Scope = 7 }, "policy", "scope: unknown number 7"},
		"action":                           {func(p parts) { p.a.Action = 2 }, "policy", "action: unknown number 2"},
		"policy extension":                 {func(p parts) { p.a.Extensions[0].Name = "tacit.mesh/jwt" }, "policy", `extensions[0]: unknown extension "tacit.mesh/jwt"`},
		"policy extension of another type": {func(p parts) { p.a.Extensions[0].Config = mustPack(&emptypb.Empty{}) }, "policy", "extensions[0].config"},
		"policy extension without content": {func(p parts) { p.a.Extensions[0].Config = nil }, "policy", "extensions[0].config"},
		"sender's own":                     {func(p parts) { p.a.Extensions[0].Config = mustPack(&tacit.PolicyExtension{Unknown: "paths"}) }, "policy", "paths"},
		"match extension":                  {func(p parts) { p.m.Extensions[0].Name = "tacit.mesh/later" }, "match", `rules[0].clauses[0].matches[0].extensions[0]: unknown extension "tacit.mesh/later"`},
		"match extension twice":            {func(p parts) { p.m.Extensions = append(p.m.Extensions, p.m.Extensions[0]) }, "match", "extensions[1]: tacit.mesh/match is given twice"},
		"match extension cut off":          {func(p parts) { p.m.Extensions[0].Config.Value = p.m.Extensions[0].Config.Value[:3] }, "match", "extensions[0].config"},
		"sender's own in a match":          {func(p parts) { p.e.Unknown = "hosts" }, "match", "hosts"},
		"port":                             {func(p parts) { p.m.DestinationPorts = []uint32{80, 65536} }, "match", "rules[0].clauses[0].matches[0].destination_ports[1]: 65536 is not a port"},
		"port 2^16+80":                     {func(p parts) { p.m.NotDestinationPorts = []uint32{1<<16 + 80} }, "match", "not_destination_ports[0]"},
		"port 0":                           {func(p parts) { p.m.DestinationPorts[0] = 0 }, "match", "destination_ports[0]"},
		"short address":                    {func(p parts) { p.m.SourceIps[0].Address = []byte{10, 0, 0} }, "match", "source_ips[0]: address of 3 bytes"},
		"no address":                       {func(p parts) { p.m.NotSourceIps[0].Address = nil }, "match", "not_source_ips[0]: address of 0 bytes"},
		"length of IPv4":                   {func(p parts) { p.m.DestinationIps[0].Length = 33 }, "match", "destination_ips[0]: prefix length 33"},
		"length of IPv6":                   {func(p parts) { p.m.NotDestinationIps[0] = &security.Address{Address: make([]byte, 16), Length: 129} }, "match", "not_destination_ips[0]: prefix length 129"},
		"length 2^32-1":                    {func(p parts) { p.m.SourceIps[0].Length = 1<<32 - 1 }, "match", "prefix length 4294967295"},
		"length of IPv4-mapped":            {func(p parts) { p.m.SourceIps[0] = &security.Address{Address: mapped(10, 0, 0, 0), Length: 95} }, "match", "source_ips[0]: prefix length 95 of an IPv4-mapped address"},
		"comparison":                       {func(p parts) { p.m.Principals[0].MatchType = nil }, "match", "principals[0]: no kind of comparison"},
		"account":                          {func(p parts) { p.m.NotServiceAccounts[0].ServiceAccount = "" }, "match", "not_service_accounts[0]"},
		"label key":                        {func(p parts) { p.e.SourceLabels[0].Key = "" }, "match", "extensions[0].config.source_labels[0]"},
		"label values":                     {func(p parts) { p.e.NotSourceLabels[0].Values = nil }, "match", "not_source_labels[0]"},
		"label comparison":                 {func(p parts) { p.e.SourceLabels[0].Values[0].MatchType = nil }, "match", "source_labels[0]: values[0]: no kind of comparison"},
		"window":                           {func(p parts) { p.e.Times[0].Last = 86401 }, "match", "times[0]: window 1-86401"},
		"not window":                       {func(p parts) { p.e.NotTimes[0].First = 1 << 31 }, "match", "not_times[0]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := parts{a: fullAuthorization(fullExtension()), e: fullExtension()}
			p.m = p.a.Rules[0].Clauses[0].Matches[0]
			tt.change(p)
			if !proto.Equal(p.e, fullExtension()) {
				p.m.Extensions[0].Config = mustPack(p.e)
			}
			got := unknowns(decode(t, p.a))
			if len(got) != 1 || !strings.Contains(got[tt.level], tt.reason) {
				t.Errorf("unknown at %v, want %q at the %s", got, tt.reason, tt.level)
			}
		})
	}
}

func TestUnknownScopeAndActionDenyEverywhere(t *testing.T) {
	a := fullAuthorization(fullExtension())
	a.Scope, a.Action = 3, 3
	if p := decode(t, a); p.Scope != model.ScopeGlobal || p.Action != model.ActionDeny || p.Unknown == "" {
		t.Errorf("scope %d, action %d, unknown %q; want a global denial", p.Scope, p.Action, p.Unknown)
	}
}

// An unknown rule or clause must decide on the other side as it does here.
func TestUnknownRuleAndClauseTravel(t *testing.T) {
	known := model.Match{DestinationPorts: []uint16{80}}
	tests := map[string]model.Rule{
		"rule":   {Unknown: "why", Clauses: []model.Clause{{Matches: []model.Match{known}}}},
		"clause": {Clauses: []model.Clause{{Unknown: "why", Matches: []model.Match{known}}}},
	}
	want := []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{Unknown: "why"}}}}}}
	for name, rule := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := EncodePolicy(&model.Policy{Name: "p", Namespace: "ns", Rules: []model.Rule{rule}})
			if err != nil {
				t.Fatal(err)
			}
			p, err := DecodePolicy("ns/p", r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, p.Rules, prefixes); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Values that the wire has no form for must not turn into others.
func TestInexpressibleIsUnknown(t *testing.T) {
	tests := map[string]model.Match{
		"sub-second window": {Times: []model.TimeWindow{{First: time.Millisecond}}},
		"negative window":   {NotTimes: []model.TimeWindow{{Last: -time.Second}}},
		"zero prefix":       {NotSourceIPs: []netip.Prefix{{}}},
		"comparison":        {Principals: []model.StringMatch{{Kind: 9}}},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := EncodePolicy(&model.Policy{Name: "p", Namespace: "ns", Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{m}}}}}})
			if err != nil {
				t.Fatal(err)
			}
			p, err := DecodePolicy("ns/p", r)
			if err != nil {
				t.Fatal(err)
			}
			if got := unknowns(p); got["match"] == "" {
				t.Errorf("decoded as %+v, want it unknown", p.Rules[0].Clauses[0].Matches[0])
			}
		})
	}
}

func TestPolicyNames(t *testing.T) {
	tests := map[string]struct {
		resource, namespace, name string
		denies                    bool
	}{
		"no slash":        {"p", "", "p", false},
		"no namespace":    {"/p", "", "p", false},
		"no name":         {"ns/", "ns", "", false},
		"two slashes":     {"ns/a/b", "ns", "a/b", false},
		"empty":           {"", "", "", false},
		"other name":      {"ns/p", "ns", "q", true},
		"other namespace": {"ns/p", "n", "p", true},
		"nameless inside": {"ns/p", "", "", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := &security.Authorization{Namespace: tt.namespace, Name: tt.name, Scope: security.Scope_NAMESPACE}
			p, err := DecodePolicy(tt.resource, mustPack(a))
			if err == nil {
				t.Fatal("accepted")
			}
			if !tt.denies {
				if p != nil {
					t.Fatalf("a policy under no key: %+v", p)
				}
				return
			}
			want := &model.Policy{Namespace: "ns", Name: "p", Scope: model.ScopeNamespace, Action: model.ActionDeny, Unknown: err.Error()}
			if diff := cmp.Diff(want, p); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestUnreadablePolicyDenies(t *testing.T) {
	tests := map[string]*anypb.Any{
		"absent":     nil,
		"cut off":    {TypeUrl: AuthorizationType, Value: []byte{0x0a, 0x7f}},
		"other type": mustPack(&emptypb.Empty{}),
		"not UTF-8":  {TypeUrl: AuthorizationType, Value: []byte("\x0a\x01\xff")},
	}
	for name, r := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := DecodePolicy("ns/p", r)
			if err != nil {
				t.Fatal(err)
			}
			if p.Key() != "ns/p" || p.Scope != model.ScopeGlobal || p.Action != model.ActionDeny || p.Unknown == "" {
				t.Errorf("got %+v, want a global denial", p)
			}
		})
	}
}
