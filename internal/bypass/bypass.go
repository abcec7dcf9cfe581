// Package bypass is the kind Bypass, by which the mesh is suspended for some pods
// for a while, and the rule of when one is in force: control plane and agents
// each go by it with their own clock.
//
// What does not belong here: what a bypass changes in the mesh (xds/build), and
// in a pod (redirect/pods).
package bypass

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bypass suspends the mesh for pods of its namespace, for a while: policies
// deny nothing there, and unless PolicyOnly says so the pods' connections are
// not captured either. It stays as the record of that.
type Bypass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              Spec `json:"spec"`
	Status            any  `json:"status,omitempty"`
}

// Spec says for which pods, and the rest of the story.
type Spec struct {
	// Pod is the name of one; empty: all pods of the namespace.
	Pod string `json:"pod,omitempty"`
	// PolicyOnly keeps mutual TLS: what policies would deny is let through
	// and reported.
	PolicyOnly bool         `json:"policyOnly,omitempty"`
	Until      *metav1.Time `json:"until"` // when it ends by itself
	Reason     string       `json:"reason"`
	// By is who began it, and Since when, as they said themselves.
	By    string       `json:"by,omitempty"`
	Since *metav1.Time `json:"since,omitempty"`
	// EndedBy is who ended it before its time.
	EndedBy string `json:"endedBy,omitempty"`
}

// Version is the API group and version of the kind, Resource its name in paths.
const (
	Version  = "policy.tacit.mesh/v1alpha1"
	Resource = "bypasses"
)

// Bounds of bypasses.
const (
	// DefaultMax is the longest bypass that is accepted unless somebody
	// says otherwise.
	DefaultMax = 24 * time.Hour
	// Settles is how long policies deny nothing before the capture ends
	// and after it has come back. Peers are told what holds one by one, and
	// none of them may be denied for not knowing yet.
	Settles = 3 * time.Second
)

// Phase is where a bypass is in its life.
type Phase uint8

// The phases, which follow each other in the order Off, Lenient,
// Plain, Lenient, Off; with PolicyOnly there is no
// Plain.
const (
	Off     Phase = iota // it has not begun, or is over
	Lenient              // policies deny nothing
	Plain                // nor are connections captured; peers use plain TCP
)

// Begin is when the bypass begins: when the API got the object or, where there
// is no API, what the object says of itself. It is zero if neither is known.
func (b *Bypass) Begin() time.Time {
	switch {
	case !b.CreationTimestamp.IsZero():
		return b.CreationTimestamp.Time
	case b.Spec.Since != nil:
		return b.Spec.Since.Time
	}
	return time.Time{}
}

// Check says why the bypass is not to be in force at any time, where none may
// last longer than limit.
func (b *Bypass) Check(limit time.Duration) error {
	begin := b.Begin()
	switch {
	case strings.TrimSpace(b.Spec.Reason) == "":
		return errors.New("spec.reason: say why, for whoever asks later")
	case b.Spec.Until == nil:
		return errors.New("spec.until: say when it ends")
	case begin.IsZero():
		return errors.New("spec.since: say when it begins")
	case b.Spec.Until.Sub(begin) > limit:
		return fmt.Errorf("spec.until: %v after its beginning; a bypass may last %v at most", b.Spec.Until.Sub(begin).Round(time.Second), limit)
	}
	return nil
}

// Covers reports whether the bypass is about a pod.
func (b *Bypass) Covers(namespace, pod string) bool {
	return b.Namespace == namespace && (b.Spec.Pod == "" || b.Spec.Pod == pod)
}

// Phase is where the bypass is at a moment, if Check has nothing against it.
func (b *Bypass) Phase(now time.Time, limit time.Duration) Phase {
	if b.Check(limit) != nil {
		return Off
	}
	begin, until := b.Begin(), b.Spec.Until.Time
	switch {
	case now.Before(begin), !now.Before(until.Add(Settles)), !begin.Before(until):
		return Off
	case b.Spec.PolicyOnly, now.Before(begin.Add(Settles)), !now.Before(until):
		return Lenient
	}
	return Plain
}

// NextPhase is the first moment after now at which Phase changes by itself; zero
// if there is none.
func (b *Bypass) NextPhase(now time.Time, limit time.Duration) time.Time {
	if b.Check(limit) != nil {
		return time.Time{}
	}
	begin, until := b.Begin(), b.Spec.Until.Time
	edges := []time.Time{begin, begin.Add(Settles), until, until.Add(Settles)}
	slices.SortFunc(edges, time.Time.Compare)
	is := b.Phase(now, limit)
	for _, at := range edges {
		if at.After(now) && b.Phase(at, limit) != is {
			return at
		}
	}
	return time.Time{}
}

// String is "NAMESPACE/NAME", by which everybody tells of the bypass.
func (b *Bypass) String() string { return b.Namespace + "/" + b.Name }
