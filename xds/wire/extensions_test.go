package wire

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/xds/model"
)

func TestLacks(t *testing.T) {
	labels := &model.Policy{Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{SourceLabels: []model.LabelMatch{{Key: "a"}}}}}}}}}
	for _, test := range []struct {
		name      string
		policy    *model.Policy
		announced string
		want      []string
	}{
		{"this version", labels, Extensions(), nil},
		{"a later one", labels, "tacit.mesh/match=2,tacit.mesh/new=1", nil},
		{"an earlier one", labels, "tacit.mesh/match=0", []string{matchExtension}},
		{"none", labels, "", []string{matchExtension}},
		{"nonsense", labels, "tacit.mesh/match,=,x=y=z", []string{matchExtension}},
		{"nothing needed", &model.Policy{}, "", nil},
		{"a policy that is unknown itself", &model.Policy{Unknown: "x"}, "", []string{policyExtension}},
		{"an unknown rule", &model.Policy{Rules: []model.Rule{{Unknown: "x"}}}, "", []string{matchExtension}},
	} {
		if got := Lacks(test.policy, test.announced); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestPlainDialect(t *testing.T) {
	port := model.Match{DestinationPorts: []uint16{80}}
	labels := model.Match{DestinationPorts: []uint16{81}, SourceLabels: []model.LabelMatch{{Key: "a"}}}
	timed := model.Match{Times: []model.TimeWindow{{}}}
	unknown := model.Match{DestinationPorts: []uint16{82}, Unknown: "x"}
	rule := func(clauses ...[]model.Match) model.Rule {
		var r model.Rule
		for _, matches := range clauses {
			r.Clauses = append(r.Clauses, model.Clause{Matches: matches})
		}
		return r
	}
	one := func(m ...model.Match) []model.Match { return m }
	always := model.Rule{Clauses: []model.Clause{{}}}
	for _, test := range []struct {
		name        string
		rule        model.Rule
		allow, deny []model.Rule
	}{
		{"needs none", rule(one(port), nil), []model.Rule{rule(one(port), nil)}, []model.Rule{rule(one(port), nil)}},
		{"labels and port", rule(one(labels)), nil, []model.Rule{rule(one(model.Match{DestinationPorts: []uint16{81}}))}},
		{"one of two matches", rule(one(labels, port)), []model.Rule{rule(one(port))}, []model.Rule{rule(one(model.Match{DestinationPorts: []uint16{81}}, port))}},
		{"a time alone", rule(one(port), one(timed)), nil, []model.Rule{rule(one(port), nil)}},
		{"a time beside another", rule(one(port, timed)), []model.Rule{rule(one(port))}, []model.Rule{always}},
		{"an unknown match", rule(one(unknown)), nil, []model.Rule{always}},
		{"an unknown clause", model.Rule{Clauses: []model.Clause{{Unknown: "x"}}}, nil, []model.Rule{always}},
		{"an unknown rule", model.Rule{Unknown: "x"}, nil, []model.Rule{always}},
	} {
		for action, want := range map[model.Action][]model.Rule{model.ActionAllow: test.allow, model.ActionDeny: test.deny} {
			p := &model.Policy{Namespace: "a", Name: "p", Action: action, Rules: []model.Rule{test.rule}}
			if diff := cmp.Diff(&model.Policy{Namespace: "a", Name: "p", Action: action, Rules: want}, For(p, DialectPlain)); diff != "" {
				t.Errorf("%s, action %d (-want +got):\n%s", test.name, action, diff)
			}
		}
	}
	for action, want := range map[model.Action][]model.Rule{model.ActionAllow: nil, model.ActionDeny: {always}} {
		got := For(&model.Policy{Action: action, Unknown: "x", Rules: []model.Rule{rule(one(port))}}, DialectPlain)
		if diff := cmp.Diff(&model.Policy{Action: action, Rules: want}, got); diff != "" {
			t.Errorf("an unknown policy, action %d (-want +got):\n%s", action, diff)
		}
	}
}
