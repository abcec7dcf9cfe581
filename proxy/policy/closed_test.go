package policy

import (
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Where a request says something in two ways, neither ALLOW nor DENY is got
// round by the other way.
func TestBothWaysErrOnTheClosedSide(t *testing.T) {
	header := func(values ...string) []model.HeaderMatch {
		return []model.HeaderMatch{{Name: "X-User", Values: texts(values...)}}
	}
	lines := func(values ...string) (out []HeaderField) {
		for _, v := range values {
			out = append(out, HeaderField{Name: "x-USER", Value: v})
		}
		return out
	}
	for _, test := range []struct {
		name         string
		match        model.HTTPMatch
		host         string
		headers      []HeaderField
		allows, lets bool // what ALLOW and DENY make of it
	}{
		{"the very host", model.HTTPMatch{Hosts: texts("a.com")}, "a.com", nil, true, false},
		{"a host with a port", model.HTTPMatch{Hosts: texts("a.com")}, "a.com:80", nil, false, false},
		{"a host with a final dot", model.HTTPMatch{Hosts: texts("a.com")}, "a.com.", nil, false, false},
		{"not a host with a port", model.HTTPMatch{NotHosts: texts("a.com")}, "A.com:80", nil, false, false},
		{"another host", model.HTTPMatch{Hosts: texts("a.com")}, "b.com:80", nil, false, true},
		{"one line", model.HTTPMatch{Headers: header("a")}, "", lines("a"), true, false},
		{"two lines, one fits", model.HTTPMatch{Headers: header("a")}, "", lines("b", "a"), false, false},
		{"two lines, both fit", model.HTTPMatch{Headers: header("a")}, "", lines("a", "a"), true, false},
		{"two lines, fit when joined", model.HTTPMatch{Headers: header("a,b")}, "", lines("a", "b"), false, false},
		{"not one of two lines", model.HTTPMatch{NotHeaders: header("a")}, "", lines("b", "a"), false, false},
		{"no line", model.HTTPMatch{Headers: header("*")}, "", nil, false, true},
		{"not a line", model.HTTPMatch{NotHeaders: header("*")}, "", nil, true, false},
	} {
		r := request()
		r.HTTP = &HTTPRequest{Method: "GET", Path: "/", Host: test.host, Headers: test.headers}
		for action, want := range map[model.Action]bool{model.ActionAllow: test.allows, model.ActionDeny: test.lets} {
			s := world(destination(), named("p", action, when(either(model.Match{HTTP: &test.match}))))
			if d := Evaluate(s, &r); d.Allowed != want {
				t.Errorf("%s, action %d: %v", test.name, action, d)
			}
		}
	}
}

// Of several CUSTOM policies one provider is asked, and nobody else's denial
// is overruled by it.
func TestProviders(t *testing.T) {
	custom := func(name, provider string) *model.Policy {
		p := named(name, model.ActionCustom, anyRule...)
		p.Provider = &model.Provider{Name: provider}
		return p
	}
	for _, test := range []struct {
		name     string
		policies []*model.Policy
		reason   Reason
		provider string
	}{
		{"one", []*model.Policy{custom("a", "x")}, ReasonAsk, "x"},
		{"the same twice", []*model.Policy{custom("a", "x"), custom("b", "x")}, ReasonAsk, "x"},
		{"two", []*model.Policy{custom("a", "x"), custom("b", "y")}, ReasonDenied, ""},
		{"beside DENY", []*model.Policy{custom("a", "x"), named("d", model.ActionDeny, anyRule...)}, ReasonDenied, ""},
		{"beside ALLOW", []*model.Policy{custom("a", "x"), named("d", model.ActionAllow, anyRule...)}, ReasonAsk, "x"},
		{"beside an ALLOW that does not match", []*model.Policy{custom("a", "x"), named("d", model.ActionAllow)}, ReasonNotAllowed, ""},
	} {
		r := request()
		d := Evaluate(world(destination(), test.policies...), &r)
		if provider := d.Provider; d.Allowed || d.Reason != test.reason || (provider == nil) != (test.provider == "") || provider != nil && provider.Name != test.provider {
			t.Errorf("%s: %v, provider %v", test.name, d, provider)
		}
	}
}

// A connection on which some request may be allowed is let in; one on which none
// can be, is not.
func TestConnectionsBeforeTheirRequests(t *testing.T) {
	get := either(model.Match{HTTP: &model.HTTPMatch{Methods: texts("GET")}})
	from := func(ns string) model.Clause { return either(model.Match{Namespaces: texts(ns)}) }
	for _, test := range []struct {
		name   string
		policy *model.Policy
		want   bool
	}{
		{"ALLOW some requests", named("p", model.ActionAllow, when(get)), true},
		{"ALLOW some requests of others", named("p", model.ActionAllow, when(from("other"), get)), false},
		{"DENY some requests", named("p", model.ActionDeny, when(get)), true},
		{"DENY callers", named("p", model.ActionDeny, when(from("shop"))), false},
	} {
		r := request()
		s := world(destination(), test.policy)
		if d := EvaluateConnection(s, &r); d.Allowed != test.want {
			t.Errorf("%s: %v", test.name, d)
		}
		if covered := CoversHTTP(s, r.Workload, 5432); covered != (test.name != "DENY callers") {
			t.Errorf("%s: requests are read: %v", test.name, covered)
		}
	}
}
