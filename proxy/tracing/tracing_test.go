package tracing

import (
	"math"
	"strings"
	"testing"
)

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
)

func TestParse(t *testing.T) {
	const valid = "00-" + traceID + "-" + spanID + "-01"
	for _, c := range []struct {
		parent, state string
		want          Context
		ok            bool
	}{
		{valid, "", Context{traceID, spanID, true, ""}, true},
		{valid, "congo=t61rcWkgMzE,rojo=00", Context{traceID, spanID, true, "congo=t61rcWkgMzE,rojo=00"}, true},
		{valid, "a=\x01", Context{traceID, spanID, true, ""}, true},
		{valid, "nothing", Context{traceID, spanID, true, ""}, true},
		{valid, "a=" + strings.Repeat("x", 600), Context{traceID, spanID, true, ""}, true},
		{"00-" + traceID + "-" + spanID + "-00", "", Context{traceID, spanID, false, ""}, true},
		{"00-" + traceID + "-" + spanID + "-02", "", Context{traceID, spanID, false, ""}, true},
		{"00-" + traceID + "-" + spanID + "-ff", "", Context{traceID, spanID, true, ""}, true},
		{"cc-" + traceID + "-" + spanID + "-01-what comes later", "", Context{traceID, spanID, true, ""}, true},
		{valid + "-more", "", Context{}, false},
		{"ff-" + traceID + "-" + spanID + "-01", "", Context{}, false},
		{"00-" + strings.ToUpper(traceID) + "-" + spanID + "-01", "", Context{}, false},
		{"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01", "", Context{}, false},
		{"00-" + traceID + "-" + strings.Repeat("0", 16) + "-01", "", Context{}, false},
		{"00-" + traceID + "-" + spanID + "-1", "", Context{}, false},
		{"00-" + traceID + "-" + spanID + "-0x", "", Context{}, false},
		{valid + "," + valid, "", Context{}, false},
		{"cc-" + traceID + "-" + spanID + "-01-" + strings.Repeat("x", 600), "", Context{}, false},
		{"", "a=b", Context{}, false},
	} {
		got, ok := Parse(c.parent, c.state)
		if got != c.want || ok != c.ok {
			t.Errorf("Parse(%.80q, %.20q) = %+v, %v; want %+v, %v", c.parent, c.state, got, ok, c.want, c.ok)
		}
	}
	if got := (Context{Trace: traceID, Span: spanID, Sampled: true}).String(); got != valid {
		t.Errorf("written as %q, want %q", got, valid)
	}
}

// Of traces that begin here a share is sampled, whose size the trace's state
// says; the choice of whoever began another holds, whatever the share.
func TestSampling(t *testing.T) {
	const traces = 20_000
	for _, c := range []struct {
		share float64
		state string
	}{{0, ""}, {0.25, "ot=th:c"}, {0.5, "ot=th:8"}, {1, "ot=th:0"}} {
		s := NewSampler(c.share)
		sampled := 0
		for range traces {
			span := s.Root(NewTrace())
			if span == nil {
				continue
			}
			sampled++
			if span.State != c.state || span.Parent != "" || !span.Sampled || len(span.Span) != 16 {
				t.Fatalf("share %v: %+v", c.share, span)
			}
		}
		// Six standard deviations.
		if want := c.share * traces; math.Abs(float64(sampled)-want) > 6*math.Sqrt(want*(1-c.share)) {
			t.Errorf("share %v: %d of %d", c.share, sampled, traces)
		}
		parent := Context{traceID, spanID, true, "congo=1"}
		child := s.Child(parent)
		if child == nil || child.Parent != spanID || child.Span == spanID || child.Trace != traceID || child.State != parent.State || !child.Sampled {
			t.Errorf("share %v: below %+v: %+v", c.share, parent, child)
		}
		parent.Sampled = false
		if child := s.Child(parent); child != nil {
			t.Errorf("share %v: below one that is not sampled: %+v", c.share, child)
		}
	}
	var none *Sampler
	if none.Root(NewTrace()) != nil || none.Child(Context{traceID, spanID, true, ""}) != nil {
		t.Error("no sampler samples")
	}
}
