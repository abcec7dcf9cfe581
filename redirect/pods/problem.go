package pods

import (
	"reflect"
	"time"

	"go.uber.org/zap"
)

// Problem is what is wrong with a pod, for its owner.
type Problem struct {
	Reason Reason
	Text   string
}

// Reason is the kind of a problem, in one word.
type Reason string

// The reasons.
const (
	ReasonFailed  Reason = "CaptureFailed"     // the last attempt failed; it is repeated
	ReasonRefused Reason = "NotCaptured"       // the pod is of a kind that cannot be captured
	ReasonGap     Reason = "CaptureIncomplete" // part of its traffic is not told from other traffic
	ReasonIgnored Reason = "SettingIgnored"    // a label or an annotation is not in force
	ReasonBypass  Reason = "Bypassed"          // a bypass suspends the mesh for the pod
)

const (
	// patience is for what passes by itself: a proxy that has not connected
	// yet, a process that is just starting.
	patience = 2 * time.Second
	// again is when a problem that lasts is told once more: the events of a
	// pod do not last.
	again = 30 * time.Minute
)

// report says what came of a step.
func (w *worker) report(want wish, err error) {
	w.mu.Lock()
	if err == nil {
		w.failing = time.Time{}
	} else if w.failing.IsZero() {
		w.failing = time.Now()
	}
	w.status.Err = err
	w.status.Settled = err == nil && reflect.DeepEqual(w.wish, want) && (w.status.State == StateCaptured || w.status.State == StateLeft)
	status := w.status
	w.mu.Unlock()
	w.set.statusChanged()
	w.tell(want, status)
}

// tell logs each problem and tells the pod's owner, once while it lasts.
func (w *worker) tell(want wish, status Status) {
	current := map[Problem]bool{}
	problem := func(r Reason, text string, report bool) {
		p := Problem{r, text}
		current[p] = true
		if at, ok := w.told[p]; ok && time.Since(at) < again || !report {
			return
		}
		w.told[p] = time.Now()
		w.log().Error("pod is not as wanted", zap.String("reason", string(r)), zap.String("state", string(status.State)), zap.String("error", text))
		if w.set.cfg.Report != nil && !want.dropped {
			w.set.cfg.Report(want.pod, p)
		}
	}
	if status.Err != nil {
		problem(ReasonFailed, status.Err.Error(), time.Since(w.failing) >= patience)
	}
	if want.pod.Bypass != "" {
		problem(ReasonBypass, want.pod.Bypass, true)
	}
	if want.pod.Refused != "" {
		problem(ReasonRefused, want.pod.Refused, true)
	}
	if want.pod.Capture {
		for _, f := range want.pod.Faults {
			problem(ReasonIgnored, f, true)
		}
		if status.Gap != "" {
			problem(ReasonGap, status.Gap, true)
		}
	}
	for p := range w.told {
		if !current[p] {
			delete(w.told, p)
		}
	}
}
