package wire

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/security"
	"github.com/tacit-mesh/tacit/xds/model"
)

// badAuthorizations are what each field may not be. Where nothing but a name is
// wrong the resource is rejected; else the policy stands, and what is wrong in
// it denies: a policy that is left out could have denied.
func badAuthorizations() map[string][]func(*security.Authorization) {
	long := strings.Repeat("a", maxText+1)
	extensions := func(list ...*security.Extension) func(*security.Authorization) {
		return func(a *security.Authorization) { a.Extensions = list }
	}
	unreadable := &anypb.Any{TypeUrl: "type.googleapis.com/istio.security.Authorization", Value: []byte{0xff}}
	return map[string][]func(*security.Authorization){
		"name": {
			func(a *security.Authorization) { a.Name = "" },
			func(a *security.Authorization) { a.Name = "another" },
			func(a *security.Authorization) { a.Name = long },
		},
		"namespace": {
			func(a *security.Authorization) { a.Namespace = "" },
			func(a *security.Authorization) { a.Namespace = "another" },
			func(a *security.Authorization) { a.Namespace = "ns/h" },
			func(a *security.Authorization) { a.Namespace = long },
		},
		"scope": {
			func(a *security.Authorization) { a.Scope = 3 },
			func(a *security.Authorization) { a.Scope = -1 },
		},
		"action": {
			func(a *security.Authorization) { a.Action = 2 },
			func(a *security.Authorization) { a.Action = -1 },
		},
		"extensions": {
			extensions(&security.Extension{}),
			extensions(&security.Extension{Name: policyExtension}),
			extensions(&security.Extension{Name: policyExtension, Config: unreadable}),
			extensions(&security.Extension{Name: "somebody.else"}),
			extensions(&security.Extension{Name: httpExtension, Config: unreadable}),
		},
	}
}

// badMatches are the same of what a rule asks for.
func badMatches() map[string][]func(*security.Match) {
	type match = security.Match
	texts := func(set func(*match, []*security.StringMatch)) []func(*match) {
		return []func(*match){
			func(m *match) { set(m, []*security.StringMatch{{}}) },
			func(m *match) {
				set(m, []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "x"}}, {}})
			},
			func(m *match) {
				set(m, []*security.StringMatch{{MatchType: &security.StringMatch_Presence{}}, nil})
			},
		}
	}
	prefixes := func(set func(*match, []*security.Address)) (bad []func(*match)) {
		for _, a := range []*security.Address{
			{}, {Address: []byte{}}, {Address: make([]byte, 3), Length: 8}, {Address: make([]byte, 17), Length: 8}, {Address: make([]byte, 1<<20)},
			{Address: make([]byte, 4), Length: 33}, {Address: make([]byte, 16), Length: 129}, {Address: make([]byte, 4), Length: 1<<32 - 1},
		} {
			bad = append(bad, func(m *match) { set(m, []*security.Address{a}) })
		}
		return bad
	}
	ports := func(set func(*match, []uint32)) (bad []func(*match)) {
		for _, list := range [][]uint32{{1 << 16}, {1<<32 - 1}, {80, 1<<16 + 80}} {
			bad = append(bad, func(m *match) { set(m, list) })
		}
		return bad
	}
	return map[string][]func(*match){
		"namespaces":            texts(func(m *match, v []*security.StringMatch) { m.Namespaces = v }),
		"not_namespaces":        texts(func(m *match, v []*security.StringMatch) { m.NotNamespaces = v }),
		"principals":            texts(func(m *match, v []*security.StringMatch) { m.Principals = v }),
		"not_principals":        texts(func(m *match, v []*security.StringMatch) { m.NotPrincipals = v }),
		"source_ips":            prefixes(func(m *match, v []*security.Address) { m.SourceIps = v }),
		"not_source_ips":        prefixes(func(m *match, v []*security.Address) { m.NotSourceIps = v }),
		"destination_ips":       prefixes(func(m *match, v []*security.Address) { m.DestinationIps = v }),
		"not_destination_ips":   prefixes(func(m *match, v []*security.Address) { m.NotDestinationIps = v }),
		"destination_ports":     ports(func(m *match, v []uint32) { m.DestinationPorts = v }),
		"not_destination_ports": ports(func(m *match, v []uint32) { m.NotDestinationPorts = v }),
		"service_accounts":      {func(m *match) { m.ServiceAccounts = []*security.ServiceAccountMatch{{}} }},
		"not_service_accounts":  {func(m *match) { m.NotServiceAccounts = []*security.ServiceAccountMatch{{}} }},
		"extensions": {
			func(m *match) { m.Extensions = []*security.Extension{{}} },
			func(m *match) { m.Extensions = []*security.Extension{{Name: matchExtension}} },
			func(m *match) {
				e := &security.Extension{Name: "somebody.else"}
				m.Extensions = []*security.Extension{e, e}
			},
		},
	}
}

// TestEveryFieldOfPolicies goes through all fields that there are.
func TestEveryFieldOfPolicies(t *testing.T) {
	const name = "ns/h"
	policies, matches := badAuthorizations(), badMatches()
	eachField(t, &security.Authorization{}, func(field string) bool {
		for i, change := range policies[field] {
			a := &security.Authorization{Namespace: "ns", Name: "h"}
			change(a)
			p, err := DecodePolicy(name, mustPack(a))
			switch {
			case err != nil && !strings.Contains(err.Error(), `"`+name+`"`):
				t.Errorf("%s, case %d: the error does not name the policy: %v", field, i, err)
			case p == nil || p.Unknown == "":
				t.Errorf("%s, case %d: %+v, %v", field, i, p, err)
			case err == nil && !strings.Contains(p.Unknown, field):
				t.Errorf("%s, case %d: %q does not say what is wrong", field, i, p.Unknown)
			}
		}
		_, ok := policies[field]
		return ok
	})
	eachField(t, &security.Match{}, func(field string) bool {
		for i, change := range matches[field] {
			m := &security.Match{}
			change(m)
			p, err := DecodePolicy(name, mustPack(policyOf(m)))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Rules[0].Clauses[0].Matches[0].Unknown; !strings.Contains(got, "rules[0].clauses[0].matches[0]."+field) {
				t.Errorf("%s, case %d: %q does not say what is wrong", field, i, got)
			}
		}
		_, ok := matches[field]
		return ok
	})
	for _, m := range []proto.Message{&security.Rule{}, &security.Clause{}} {
		eachField(t, m, func(string) bool { return false })
	}
}

func policyOf(m *security.Match) *security.Authorization {
	return &security.Authorization{Namespace: "ns", Name: "h", Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}}}
}

// A name that is too long to be told in logs is nobody's.
func TestOversizedPolicyName(t *testing.T) {
	long := strings.Repeat("a", maxText+1)
	p, err := DecodePolicy("ns/"+long, mustPack(&security.Authorization{Namespace: "ns", Name: long}))
	if p != nil || err == nil || len(err.Error()) > 1000 {
		t.Errorf("%v, %v", p, err)
	}
}

// What contradicts itself matches nothing, as it says.
func TestContradictingMatch(t *testing.T) {
	exact := []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "a"}}}
	p, err := DecodePolicy("ns/h", mustPack(policyOf(&security.Match{Namespaces: exact, NotNamespaces: exact})))
	if err != nil || p.Rules[0].Clauses[0].Matches[0].Unknown != "" || p.Action != model.ActionAllow {
		t.Errorf("%+v, %v", p, err)
	}
}

// badMatchParts are what the fields of the messages inside of a match may not be,
// by "MESSAGE.FIELD"; nothing of those of which any value will do.
func badMatchParts() map[string][]*security.Match {
	long, name := strings.Repeat("a", maxValue+1), strings.Repeat("a", maxText+1)
	texts := func(of *security.StringMatch) []*security.Match {
		list := []*security.StringMatch{of}
		return []*security.Match{{Namespaces: list}, {NotNamespaces: list}, {Principals: list}, {NotPrincipals: list}}
	}
	blocks := func(all ...*security.Address) (out []*security.Match) {
		for _, a := range all {
			list := []*security.Address{a}
			out = append(out, &security.Match{SourceIps: list}, &security.Match{NotSourceIps: list}, &security.Match{DestinationIps: list}, &security.Match{NotDestinationIps: list})
		}
		return out
	}
	accounts := func(all ...*security.ServiceAccountMatch) (out []*security.Match) {
		for _, a := range all {
			list := []*security.ServiceAccountMatch{a}
			out = append(out, &security.Match{ServiceAccounts: list}, &security.Match{NotServiceAccounts: list})
		}
		return out
	}
	extension := func(e *security.Extension) []*security.Match {
		return []*security.Match{{Extensions: []*security.Extension{e}}}
	}
	return map[string][]*security.Match{
		"StringMatch.exact":    texts(&security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: long}}),
		"StringMatch.prefix":   texts(&security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: long}}),
		"StringMatch.suffix":   texts(&security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: long}}),
		"StringMatch.presence": nil, // it has no value
		"Address.address": blocks(
			&security.Address{Length: 8}, &security.Address{Address: make([]byte, 3)}, &security.Address{Address: make([]byte, 5)}, &security.Address{Address: make([]byte, 1<<20)},
		),
		"Address.length": blocks(&security.Address{Address: make([]byte, 4), Length: 33}, &security.Address{Address: make([]byte, 16), Length: 129}),
		"ServiceAccountMatch.namespace": accounts(
			&security.ServiceAccountMatch{ServiceAccount: "sa"}, &security.ServiceAccountMatch{Namespace: name, ServiceAccount: "sa"},
		),
		"ServiceAccountMatch.service_account": accounts(
			&security.ServiceAccountMatch{Namespace: "ns"}, &security.ServiceAccountMatch{Namespace: "ns", ServiceAccount: name},
		),
		"Extension.name":   extension(&security.Extension{Name: "a later one"}),
		"Extension.config": extension(&security.Extension{Name: matchExtension, Config: &anypb.Any{TypeUrl: "nothing"}}),
	}
}

// TestEveryFieldWithinPolicies goes through all messages that a match is made of,
// as TestEveryFieldWithinAddresses does.
func TestEveryFieldWithinPolicies(t *testing.T) {
	bad := badMatchParts()
	fields := (&security.Match{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i).Message()
		for j := 0; d != nil && j < d.Fields().Len(); j++ {
			if key := string(d.Name()) + "." + string(d.Fields().Get(j).Name()); strings.HasPrefix(string(d.FullName()), "istio.security.") {
				if _, ok := bad[key]; !ok {
					t.Errorf("%s: what may it not be?", key)
				}
			}
		}
	}
	for key, matches := range bad {
		for i, m := range matches {
			p, err := DecodePolicy("ns/h", mustPack(policyOf(m)))
			if err != nil || p.NotUnderstood() == "" || p.Rules[0].Clauses[0].Matches[0].Unknown != p.NotUnderstood() {
				t.Errorf("%s, case %d: %+v, %v", key, i, p, err)
			}
		}
	}
}
