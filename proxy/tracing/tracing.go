// Package tracing reads and writes W3C Trace Context
// (https://www.w3.org/TR/trace-context/) and decides which traces are sampled.
//
// What does not belong here: what a span says (proxy/telemetry), and sending it
// (internal/otlp).
package tracing

import (
	"crypto/rand"
	"encoding/hex"
	"math"
	"strconv"
	"strings"
)

// The headers of Trace Context.
const (
	ParentHeader = "traceparent"
	StateHeader  = "tracestate"
)

// Context is a place in a trace: what somebody's span hands on.
type Context struct {
	Trace   string // 32 hex digits
	Span    string // 16 hex digits
	Sampled bool
	State   string // tracestate; empty if there is none
}

// Span is one that is made here.
type Span struct {
	Context
	Parent string // the span above it; empty for the first of a trace
}

// maxState is the length of a tracestate that everybody is to hand on.
const maxState = 512

// Parse reads the two headers. It is false where the first is none by the
// letter; a second one that is none is left out.
func Parse(parent, state string) (Context, bool) {
	parts := strings.Split(parent, "-")
	if len(parent) > maxState || len(parts) < 4 || !isHex(parts[0], 2) || parts[0] == "ff" || parts[0] == "00" && len(parts) > 4 {
		return Context{}, false
	}
	if !isHex(parts[1], 32) || !isHex(parts[2], 16) || !isHex(parts[3], 2) || isZero(parts[1]) || isZero(parts[2]) {
		return Context{}, false
	}
	flags, _ := strconv.ParseUint(parts[3], 16, 8) // it is hex
	// Not the peer's whole header, for as long as the ids are remembered.
	c := Context{Trace: strings.Clone(parts[1]), Span: strings.Clone(parts[2]), Sampled: flags&1 != 0}
	if len(state) <= maxState && isState(state) {
		c.State = strings.Clone(state)
	}
	return c, true
}

// String is the context as a traceparent.
func (c Context) String() string {
	flags := "00"
	if c.Sampled {
		flags = "01"
	}
	return "00-" + c.Trace + "-" + c.Span + "-" + flags
}

func isHex(s string, length int) bool {
	return len(s) == length && strings.Trim(s, "0123456789abcdef") == ""
}

func isZero(s string) bool { return strings.Trim(s, "0") == "" }

// isState knows characters of a list of KEY=VALUE, and leaves it to whoever the
// members belong to what they are.
func isState(s string) bool {
	for i := range len(s) {
		if (s[i] < ' ' || s[i] > '~') && s[i] != '\t' {
			return false
		}
	}
	return s == "" || strings.Contains(s, "=")
}

// NewTrace is the id of a trace, and a connection's.
func NewTrace() string { return random(16) }

// NewSpan is the id of a span.
func NewSpan() string { return random(8) }

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Sampler says which spans are made: those whose parent is sampled, and a share
// of those that have none.
type Sampler struct {
	threshold uint64
	state     string
}

// randomness is how much of a trace's id is compared: its last 56 bits, as
// OpenTelemetry's probability sampling has it.
const randomness = 56

// NewSampler samples this share, 0 to 1, of the traces that begin here.
func NewSampler(ratio float64) *Sampler {
	threshold := uint64(math.Round((1 - min(max(ratio, 0), 1)) * (1 << randomness)))
	s := &Sampler{threshold: threshold}
	if threshold < 1<<randomness {
		// By this whoever counts spans knows for how many each stands.
		digits := strings.TrimRight(hex.EncodeToString([]byte{
			byte(threshold >> 48), byte(threshold >> 40), byte(threshold >> 32), byte(threshold >> 24),
			byte(threshold >> 16), byte(threshold >> 8), byte(threshold),
		}), "0")
		if digits == "" {
			digits = "0"
		}
		s.state = "ot=th:" + digits
	}
	return s
}

// Root is the first span of a trace with this id, which is random; nil if it is
// not sampled. A nil sampler samples none.
func (s *Sampler) Root(trace string) *Span {
	if s == nil || s.state == "" || len(trace) != 32 {
		return nil
	}
	last, err := strconv.ParseUint(trace[32-randomness/4:], 16, 64)
	if err != nil || last < s.threshold {
		return nil
	}
	return &Span{Context: Context{Trace: trace, Span: NewSpan(), Sampled: true, State: s.state}}
}

// Child is a span below somebody's; nil if that is not sampled.
func (s *Sampler) Child(parent Context) *Span {
	if s == nil || !parent.Sampled {
		return nil
	}
	child := &Span{Context: parent, Parent: parent.Span}
	child.Span = NewSpan()
	return child
}
