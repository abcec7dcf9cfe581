package build

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/model"
)

func bypassOf(t *testing.T, spec string) *bypass.Bypass {
	t.Helper()
	return strictObject[bypass.Bypass](t, `
metadata: {name: b, namespace: shop}
spec: {`+spec+` since: "2026-01-01T00:00:00Z", by: somebody}
`)
}

// suspended says of the two pods how they are reached and under which bypass.
func suspended(s *model.Snapshot) map[string]string {
	out := map[string]string{}
	for _, w := range s.Workloads() {
		how := "hbone"
		if w.Protocol == model.ProtocolTCP {
			how = "tcp"
		}
		out[w.Name] = strings.TrimSpace(how + " " + w.Bypass)
	}
	return out
}

func TestBypass(t *testing.T) {
	const untouched, lenient, plain = "hbone", "hbone shop/b", "tcp shop/b"
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		spec   string
		phases []string // of pod web, as they follow each other
		db     []string
	}{
		"a namespace":   {`until: "2026-01-01T01:00:00Z", reason: why,`, []string{lenient, plain, lenient, untouched}, []string{lenient, plain, lenient, untouched}},
		"a pod":         {`until: "2026-01-01T01:00:00Z", reason: why, pod: web,`, []string{lenient, plain, lenient, untouched}, []string{untouched, untouched, untouched, untouched}},
		"policies only": {`until: "2026-01-01T01:00:00Z", reason: why, policyOnly: true,`, []string{lenient, untouched}, []string{lenient, untouched}},
	} {
		t.Run(name, func(t *testing.T) {
			m, s := revocable(t)
			b := bypassOf(t, test.spec)
			s = s.Apply(m.Advance(begin.Add(-time.Minute)))
			s = s.Apply(m.Apply(Changes{Set: []metav1.Object{b}}))
			if got := suspended(s); got["web"] != untouched {
				t.Errorf("before it begins: %v", got)
			}
			for i, want := range test.phases {
				s = s.Apply(m.Advance(m.NextEnd()))
				if diff := cmp.Diff(map[string]string{"web": want, "db": test.db[i]}, suspended(s)); diff != "" {
					t.Errorf("phase %d: %s", i, diff)
				}
				st := m.Statuses()
				if len(st) != 1 || st[0].Kind != "Bypass" || st[0].Enforced != (want != untouched) {
					t.Errorf("phase %d: status %+v", i, st)
				}
			}
			if !m.NextEnd().IsZero() || len(m.Bypasses()) > 0 {
				t.Errorf("it is over, and next is %v; in force are %v", m.NextEnd(), m.Bypasses())
			}
		})
	}
}

func TestBypassEndsWithItsObject(t *testing.T) {
	m, s := revocable(t)
	b := bypassOf(t, `until: "2026-01-01T01:00:00Z", reason: why,`)
	m.Advance(time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC))
	s = s.Apply(m.Apply(Changes{Set: []metav1.Object{b}}))
	if got := suspended(s); got["web"] != "tcp shop/b" || len(m.Bypasses()) != 1 {
		t.Errorf("in force: %v", got)
	}
	s = s.Apply(m.Apply(Changes{Gone: []metav1.Object{b}}))
	if got := suspended(s); got["web"] != "hbone" || len(m.Statuses()) > 0 {
		t.Errorf("once it is gone: %v, status %+v", got, m.Statuses())
	}
}

func TestBypassIsRefused(t *testing.T) {
	for name, test := range map[string]struct{ spec, message string }{
		"too long":  {`until: "2026-01-03T00:00:00Z", reason: why,`, "a bypass may last 24h0m0s at most"},
		"no reason": {`until: "2026-01-01T01:00:00Z", reason: "",`, "spec.reason: say why"},
		"of no pod": {`until: "2026-01-01T01:00:00Z", reason: why, pod: other,`, "it covers no pod that is in the mesh: shop/other is none"},
		"in force":  {`until: "2026-01-01T01:00:00Z", reason: why, `, ""},
		"no end":    {`until: null, reason: why,`, "spec.until"},
	} {
		m, s := revocable(t)
		m.Advance(time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC))
		s = s.Apply(m.Apply(Changes{Set: []metav1.Object{bypassOf(t, test.spec)}}))
		st := m.Statuses()
		if len(st) != 1 || !strings.Contains(strings.Join(st[0].Messages, "\n"), test.message) {
			t.Errorf("%s: status %+v", name, st)
		}
		if got := suspended(s)["web"]; (got == "hbone") != (test.message != "") {
			t.Errorf("%s: web is %s", name, got)
		}
	}
}
