package uses

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 5, 1, 12, 30, 0, 0, time.UTC)

func days(n int) time.Time { return noon.Add(time.Duration(n) * 24 * time.Hour) }

func text(t *testing.T, m *Memory) string {
	t.Helper()
	text, left, err := m.Text()
	if err != nil || left > 0 {
		t.Fatal(left, err)
	}
	return text
}

// A policy is of no use if it has decided about nothing for a week in which it
// was in force, through the ends of all who remember.
func TestAWeek(t *testing.T) {
	first := &Memory{}
	first.Note([]string{"shop/used", "shop/never", "shop/once", "shop/gone"}, map[string]time.Time{"shop/used": noon, "shop/once": noon, "shop/other": noon}, noon)
	second := &Memory{} // after a restart
	if err := second.Merge(text(t, first)); err != nil {
		t.Fatal(err)
	}
	second.Note([]string{"shop/used", "shop/never", "shop/once", "shop/new"}, map[string]time.Time{"shop/used": days(6)}, days(6))
	for _, test := range []struct {
		at   time.Time
		want []string
	}{
		{days(6), []string{}},
		{days(7), []string{}}, // it began within the hour
		{days(8), []string{"shop/never", "shop/once"}},
		{days(14), []string{"shop/never", "shop/new", "shop/once", "shop/used"}},
	} {
		got := second.Report(test.at)
		if diff := cmp.Diff(&Report{Since: noon.Truncate(time.Hour), Unused: test.want}, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", test.at, diff)
		}
	}
	if strings.Contains(text(t, second), "gone") || strings.Contains(text(t, second), "other") {
		t.Errorf("what is not in force is remembered: %s", text(t, second))
	}
}

// Whoever writes last takes nothing from the others.
func TestSeveralRemember(t *testing.T) {
	a, b := &Memory{}, &Memory{}
	a.Note([]string{"x", "y"}, map[string]time.Time{"x": days(3)}, noon)
	b.Note([]string{"x", "y"}, map[string]time.Time{"y": days(2), "x": days(1)}, days(1))
	for _, m := range []*Memory{a, b} {
		if err := m.Merge(text(t, map[*Memory]*Memory{a: b, b: a}[m])); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(text(t, a), text(t, b)); diff != "" {
		t.Errorf("a and b differ:\n%s", diff)
	}
	hour := func(at time.Time) time.Time { return at.Truncate(time.Hour) }
	if diff := cmp.Diff(map[string]Use{"x": {hour(noon), hour(days(3))}, "y": {hour(noon), hour(days(2))}}, a.policies); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestBounds(t *testing.T) {
	var many []string
	for i := range 2 * maxPolicies {
		many = append(many, fmt.Sprint("shop/p", i))
	}
	m := &Memory{}
	m.Note(many, nil, noon)
	other := &Memory{}
	other.Note(many[maxPolicies:], nil, noon)
	if err := m.Merge(text(t, other)); err != nil || len(m.policies) != maxPolicies {
		t.Errorf("%d policies, %v", len(m.policies), err)
	}
	for _, bad := range []string{"{", "[]", strings.Repeat(" ", maxText+1)} {
		if err := m.Merge(bad); err == nil {
			t.Errorf("%.10q is taken", bad)
		}
	}
	long := &Memory{}
	long.Note([]string{strings.Repeat("x", maxText)}, nil, noon)
	if text, left, err := long.Text(); err != nil || left != 1 || len(text) > maxText {
		t.Errorf("a text that nobody could keep: %d bytes, %d left out, %v", len(text), left, err)
	}
	// Long names leave room for some.
	for i := range maxPolicies {
		many[i] = fmt.Sprintf("shop/%0200d", i)
	}
	long.Note(many, nil, noon)
	text, left, err := long.Text()
	if err != nil || left == 0 || len(text) > maxText || len(text) < maxText-1024 {
		t.Errorf("%d bytes, %d left out, %v", len(text), left, err)
	}
	if err := (&Memory{}).Merge(text); err != nil {
		t.Error(err)
	}
}
