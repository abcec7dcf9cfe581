package pods

import (
	"fmt"
	"time"

	"github.com/tacit-mesh/tacit/internal/bypass"
)

// Bypasses are those of a cluster, and how long one may last.
type Bypasses struct {
	All   []*bypass.Bypass
	Limit time.Duration
}

// clockStep bounds a wait for a moment of the wall clock: timers stand still
// while a machine sleeps, and clocks are set.
const clockStep = 10 * time.Second

// Apply says what the bypasses make of a pod that is to be captured: it is not
// while one suspends its capture, and its owner is told.
func (b Bypasses) Apply(p *Pod, now time.Time) {
	if !p.Capture {
		return
	}
	for _, one := range b.All {
		if !one.Covers(p.Namespace, p.Name) {
			continue
		}
		switch one.Phase(now, b.Limit) {
		case bypass.Off:
			continue
		case bypass.Plain:
			p.Capture = false
		case bypass.Lenient:
		}
		how := "policies deny nothing at the pod, and its connections are not captured"
		if one.Spec.PolicyOnly {
			how = "policies deny nothing at the pod"
		}
		p.Bypass = fmt.Sprintf("bypass %s until %s, by %s: %s. Reason: %s",
			one, one.Spec.Until.UTC().Format(time.RFC3339), one.Spec.By, how, one.Spec.Reason)
	}
}

// Next is when to look at the bypasses again at the latest: nothing comes of
// the channel if none of them changes by itself.
func (b Bypasses) Next(now time.Time) <-chan time.Time {
	var first time.Time
	for _, one := range b.All {
		if at := one.NextPhase(now, b.Limit); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(min(first.Sub(now), clockStep))
}
