package bypass

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// at is so many seconds after the beginning of all tests.
func at(seconds float64) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

func lasting(seconds float64, change ...func(*Bypass)) *Bypass {
	b := &Bypass{Spec: Spec{Reason: "why", Since: &metav1.Time{Time: at(0)}, Until: &metav1.Time{Time: at(seconds)}}}
	b.Namespace, b.Name = "shop", "b"
	for _, c := range change {
		c(b)
	}
	return b
}

func TestPhases(t *testing.T) {
	policyOnly := func(b *Bypass) { b.Spec.PolicyOnly = true }
	settles := Settles.Seconds()
	for name, test := range map[string]struct {
		bypass *Bypass
		phases map[float64]Phase // from that second on
		edges  []float64
	}{
		"all of it": {
			lasting(60),
			map[float64]Phase{-1: Off, 0: Lenient, settles - .1: Lenient, settles: Plain, 59.9: Plain, 60: Lenient, 59.9 + settles: Lenient, 60 + settles: Off},
			[]float64{0, settles, 60, 60 + settles},
		},
		"policies only": {
			lasting(60, policyOnly),
			map[float64]Phase{-1: Off, 0: Lenient, settles: Lenient, 60: Lenient, 60 + settles: Off},
			[]float64{0, 60 + settles},
		},
		"ended while it began": {lasting(1), map[float64]Phase{0: Lenient, 1: Lenient, settles: Lenient, 1 + settles: Off}, []float64{0, 1 + settles}},
		"ended before":         {lasting(-1), map[float64]Phase{-2: Off, -1: Off, 0: Off, 1: Off}, nil},
		"the API knows better when it began": {
			lasting(60, func(b *Bypass) { b.CreationTimestamp = metav1.NewTime(at(10)) }),
			map[float64]Phase{0: Off, 9: Off, 10: Lenient, 10 + settles: Plain}, []float64{10, 10 + settles, 60, 60 + settles},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for second, want := range test.phases {
				if got := test.bypass.Phase(at(second), time.Hour); got != want {
					t.Errorf("after %vs: phase %d, want %d", second, got, want)
				}
			}
			now := at(-3600)
			for _, second := range test.edges {
				if now = test.bypass.NextPhase(now, time.Hour); !now.Equal(at(second)) {
					t.Fatalf("the next phase begins at %v, want %v", now, at(second))
				}
			}
			if test.edges != nil && !test.bypass.NextPhase(now, time.Hour).IsZero() {
				t.Error("it does not end")
			}
		})
	}
}

func TestNeverInForce(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Bypass)
		want   string
	}{
		"no reason":    {func(b *Bypass) { b.Spec.Reason = " " }, "spec.reason"},
		"no end":       {func(b *Bypass) { b.Spec.Until = nil }, "spec.until"},
		"no beginning": {func(b *Bypass) { b.Spec.Since = nil }, "spec.since"},
		"too long":     {func(b *Bypass) { b.Spec.Until.Time = at(3601) }, "1h0m1s after its beginning; a bypass may last 1h0m0s at most"},
		"a beginning that is not the API's": {func(b *Bypass) {
			b.CreationTimestamp = metav1.NewTime(at(0))
			b.Spec.Since.Time, b.Spec.Until.Time = at(7000), at(7200)
		}, "at most"},
	} {
		b := lasting(60, test.change)
		if err := b.Check(time.Hour); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if p := b.Phase(at(30), time.Hour); p != Off {
			t.Errorf("%s: phase %d", name, p)
		}
		if next := b.NextPhase(at(30), time.Hour); !next.IsZero() {
			t.Errorf("%s: something changes at %v", name, next)
		}
	}
}

func TestCopies(t *testing.T) {
	b := lasting(60, func(b *Bypass) {
		b.Status = map[string]any{"conditions": []any{}}
		b.Labels = map[string]string{"a": "b"}
	})
	l := &List{Items: []Bypass{*b}}
	out := l.DeepCopyObject().(*List)
	one := &out.Items[0]
	one.Spec.Until.Time, one.Labels["a"] = at(0), "c"
	one.Status.(map[string]any)["conditions"] = nil
	if !b.Spec.Until.Equal(&metav1.Time{Time: at(60)}) || b.Labels["a"] != "b" || b.Status.(map[string]any)["conditions"] == nil {
		t.Errorf("the copy shares with %+v", b)
	}
}
