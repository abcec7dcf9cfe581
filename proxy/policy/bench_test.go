package policy

import (
	"fmt"
	"testing"

	"github.com/tacit-mesh/tacit/xds/model"
)

// thousand are 1,000 policies of 10 rules about requests, ten for each of a
// hundred namespaces; of those of the destination's, half are for all its
// workloads, and half select it.
func thousand() (*model.Snapshot, *model.Workload) {
	var u model.Update
	w := destination()
	for i := range 1000 {
		p := &model.Policy{Name: fmt.Sprintf("p%d", i), Namespace: fmt.Sprintf("ns%d", i%100), Scope: model.ScopeNamespace, Action: model.Action(i / 100 % 2)}
		if i%100 == 0 {
			if p.Namespace = "data"; i%200 == 0 {
				p.Scope = model.ScopeSelector
				w.Policies = append(w.Policies, p.Key())
			}
		}
		paths := map[model.Action]string{model.ActionAllow: "/api", model.ActionDeny: "/private"}[p.Action]
		for j := range 10 {
			p.Rules = append(p.Rules, when(
				either(model.Match{Principals: texts(fmt.Sprintf("cluster.local/ns/other/sa/a%d", j), "td/*")}),
				either(model.Match{HTTP: &model.HTTPMatch{Methods: texts("GET", "HEAD"), Paths: texts(fmt.Sprintf("%s/v%d/*", paths, j))}}),
			))
		}
		u.Policies = append(u.Policies, p)
	}
	u.Workloads, u.PoliciesComplete = []*model.Workload{w}, true
	return model.NewSnapshot().Apply(u), w
}

func benchmarkRequest(w *model.Workload) Request {
	r := request()
	r.Workload, r.Identity = w, model.Identity{TrustDomain: "cluster.local", Namespace: "other", ServiceAccount: "a9"}
	r.HTTP = &HTTPRequest{
		Method: "GET", Path: "/api/v9/items", Host: "db.data",
		Headers: []HeaderField{{Name: "User-Agent", Value: "curl"}, {Name: "Accept", Value: "*/*"}},
	}
	return r
}

func BenchmarkRequests(b *testing.B) {
	s, w := thousand()
	r := benchmarkRequest(w)
	if d := Evaluate(s, &r); d.Reason != ReasonAllowed {
		b.Fatal(d)
	}
	b.Run("1000 policies of 10 rules", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Evaluate(s, &r)
		}
	})
	denied := benchmarkRequest(w)
	denied.Identity = client
	b.Run("allowed by none of them", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Evaluate(s, &denied)
		}
	})
	all := thousandOnOne()
	r2 := benchmarkRequest(destination())
	b.Run("all on one workload", func(b *testing.B) {
		Evaluate(all, &r2)
		b.ReportAllocs()
		for b.Loop() {
			Evaluate(all, &r2)
		}
	})
	b.Run("all on one workload, one by one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			plainly(all, &r2, false)
		}
	})
	b.Run("indexing them", func(b *testing.B) {
		policies := all.NamespacePolicies("data")
		b.ReportAllocs()
		for b.Loop() {
			newIndex(policies)
		}
	})
	r3 := benchmarkRequest(w)
	r3.HTTP = nil
	b.Run("connection", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Evaluate(s, &r3)
		}
	})
}

// thousandOnOne covers one workload with all thousand.
func thousandOnOne() *model.Snapshot {
	s, _ := thousand()
	u := model.Update{Workloads: []*model.Workload{destination()}, PoliciesComplete: true}
	for _, p := range s.Policies() {
		q := *p
		q.Namespace, q.Scope = "data", model.ScopeNamespace
		u.Policies = append(u.Policies, &q)
	}
	return model.NewSnapshot().Apply(u)
}

// Nothing is allocated for a decision, whatever a policy looks at.
func TestRequestsAreDecidedWithoutAllocation(t *testing.T) {
	h := &model.HTTPMatch{
		Methods: texts("G*"), NotMethods: texts("X"), Paths: append(texts("/x"), model.StringMatch{Kind: model.MatchTemplate, Value: "/api/{*}/{**}"}),
		Hosts: texts("DB.*"), NotHosts: texts("x"), RequestPrincipals: texts("i/*"), NotRequestPrincipals: texts("i/x"),
		Audiences: texts("a"), Presenters: texts("p"), Headers: []model.HeaderMatch{{Name: "user-agent", Values: texts("c*")}},
		NotHeaders: []model.HeaderMatch{{Name: "accept", Values: texts("x")}}, Claims: []model.ClaimMatch{{Path: []string{"n", "g"}, Values: texts("y")}},
	}
	s := world(destination(), named("p", model.ActionAllow, when(either(model.Match{HTTP: h}))))
	r := benchmarkRequest(destination())
	r.HTTP.Claims = NewClaims(map[string]any{"iss": "i", "sub": "s", "aud": []any{"a"}, "azp": "p", "n": map[string]any{"g": []any{"x", "y"}}}, nil)
	if d := Evaluate(s, &r); !d.Allowed {
		t.Fatal(d)
	}
	if n := testing.AllocsPerRun(100, func() { Evaluate(s, &r); EvaluateConnection(s, &r) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
