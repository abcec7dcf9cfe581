package build

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

func revocation(t *testing.T, namespace, id, until string) *kinds.RevokedIdentity {
	t.Helper()
	return strictObject[kinds.RevokedIdentity](t, `
metadata: {name: r, namespace: `+namespace+`}
spec: {identity: "`+id+`", `+until+` by: somebody, since: "2026-01-01T00:00:00Z", reason: leaked}
`)
}

// revocable is a mesh of two pods of different accounts.
func revocable(t *testing.T) (*Mesh, *model.Snapshot) {
	t.Helper()
	o := Objects{Namespaces: []*corev1.Namespace{object[corev1.Namespace](t, `{metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}}}`)}}
	for name, ip := range map[string]string{"web": "198.18.0.1", "db": "198.18.0.2"} {
		p := object[corev1.Pod](t, `{metadata: {name: `+name+`, namespace: shop, annotations: {tacit.mesh/redirection: enabled}}, spec: {serviceAccountName: `+name+`, nodeName: n}, status: {podIPs: [{ip: `+ip+`}]}}`)
		p.UID = types.UID(name)
		o.Pods = append(o.Pods, p)
	}
	m := New(Settings{})
	return m, model.NewSnapshot().Apply(m.Apply(o.Since(nil)))
}

// attached are the policies of the two pods, by name.
func attached(s *model.Snapshot) map[string][]string {
	out := map[string][]string{}
	for _, w := range s.Workloads() {
		out[w.Name] = w.Policies
	}
	return out
}

func TestRevokedIdentity(t *testing.T) {
	m, s := revocable(t)
	r := revocation(t, "tacit-system", "spiffe://cluster.local/ns/shop/sa/web", `until: "2026-01-02T00:00:00Z",`)
	m.Advance(r.Spec.Until.Add(-time.Second))
	s = s.Apply(m.Apply(Changes{Set: []metav1.Object{r}}))
	const from, to = "tacit-system/revoked_identity_r", "tacit-system/revoked_identity_to_r"
	want := &model.Policy{
		Name: "revoked_identity_r", Namespace: "tacit-system", Scope: model.ScopeGlobal, Action: model.ActionDeny,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{
			Principals: []model.StringMatch{{Kind: model.MatchExact, Value: "cluster.local/ns/shop/sa/web"}},
		}}}}}},
	}
	if got, _ := s.Policy(from); cmp.Diff(want, got) != "" {
		t.Errorf("what comes from it: %s", cmp.Diff(want, got))
	}
	if p, _ := s.Policy(to); p == nil || p.Action != model.ActionDeny || len(p.Rules) != 1 || len(p.Rules[0].Clauses[0].Matches) != 0 {
		t.Errorf("what goes to it: %+v", p)
	}
	if diff := cmp.Diff(map[string][]string{"web": {to}, "db": nil}, attached(s)); diff != "" {
		t.Errorf("attached: %s", diff)
	}
	if st := m.Statuses(); len(st) != 1 || !st[0].Enforced || len(st[0].Messages) > 0 || st[0].Policy() != from {
		t.Errorf("status %+v", st)
	}

	if end := m.NextEnd(); !end.Equal(r.Spec.Until.Time) {
		t.Errorf("the next end is %v", end)
	}
	s = s.Apply(m.Advance(r.Spec.Until.Time))
	if policies := m.Policies(); len(policies) > 0 || !m.NextEnd().IsZero() {
		t.Errorf("once it is over: %v, and next %v", policies, m.NextEnd())
	}
	if diff := cmp.Diff(map[string][]string{"web": nil, "db": nil}, attached(s)); diff != "" {
		t.Errorf("attached once it is over: %s", diff)
	}
	if st := m.Statuses(); st[0].Enforced || !slices.Equal(st[0].Messages, []string{"not enforced any more: it ended at 2026-01-02T00:00:00Z"}) {
		t.Errorf("status once it is over: %+v", st)
	}

	// A clock that is set back brings it back.
	if u := m.Advance(r.Spec.Until.Add(-time.Hour)); len(u.Policies) != 2 {
		t.Errorf("with the clock set back: %+v", u)
	}
}

func TestRevokedIdentityWithoutEnd(t *testing.T) {
	m, _ := revocable(t)
	m.Advance(time.Now().AddDate(100, 0, 0))
	if u := m.Apply(Changes{Set: []metav1.Object{revocation(t, "tacit-system", "spiffe://other.example/ns/shop/sa/web", "")}}); len(u.Policies) != 2 || len(u.Workloads) > 0 {
		t.Errorf("an identity of another trust domain: %+v", u)
	}
	if !m.NextEnd().IsZero() {
		t.Errorf("it ends at %v", m.NextEnd())
	}
}

func TestRevokedIdentityIsRefused(t *testing.T) {
	for _, test := range []struct{ name, namespace, id, message string }{
		{"of a tenant", "shop", "spiffe://cluster.local/ns/shop/sa/web", "identities are revoked in namespace tacit-system"},
		{"of nobody", "tacit-system", "spiffe://cluster.local/web", "spec.identity: not enforced"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, _ := revocable(t)
			u := m.Apply(Changes{Set: []metav1.Object{revocation(t, test.namespace, test.id, "")}})
			st := m.Statuses()
			if len(u.Policies) > 0 || st[0].Enforced || !strings.Contains(strings.Join(st[0].Messages, ""), test.message) {
				t.Errorf("policies %v, status %+v", u.Policies, st)
			}
		})
	}
	if _, err := kinds.Decode[kinds.RevokedIdentity]([]byte(`{"spec":{"identity":"x","expires":"2026-01-01T00:00:00Z"}}`)); err == nil {
		t.Error("an unknown field is passed over")
	}
}
