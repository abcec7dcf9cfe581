// Package bypasses writes the records of bypasses, which tacitd and the agents
// act on.
//
// What does not belong here: where the records are (cmd/tacit/records), when a
// bypass is in force (internal/bypass), and flags (cmd/tacit).
package bypasses

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tacit-mesh/tacit/cmd/tacit/records"
	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/build"
)

// Store is where records are.
type Store = records.Store[bypass.Bypass]

// Kind is Bypass, for stores.
func Kind() records.Kind[bypass.Bypass] {
	return records.Kind[bypass.Bypass]{
		APIVersion: bypass.Version, Kind: "Bypass", Resource: bypass.Resource, Doing: "bypassing",
		Object: func(b *bypass.Bypass) metav1.Object { return b },
		Type:   func(b *bypass.Bypass) *metav1.TypeMeta { return &b.TypeMeta },
		Spec:   func(b *bypass.Bypass) any { return b.Spec },
		Of:     func(o *build.Objects) []*bypass.Bypass { return o.Bypasses },
	}
}

// Subject is what a bypass is about: a pod, or without one a whole namespace.
type Subject struct{ Namespace, Pod string }

// ParseSubject reads "NAMESPACE/POD" or "NAMESPACE".
func ParseSubject(text string) (Subject, error) {
	namespace, pod, named := strings.Cut(text, "/")
	if len(validation.IsDNS1123Label(namespace)) > 0 || named && len(validation.IsDNS1123Subdomain(pod)) > 0 {
		return Subject{}, fmt.Errorf("%q: want NAMESPACE/POD, or NAMESPACE for all of its pods", text)
	}
	return Subject{namespace, pod}, nil
}

func (s Subject) String() string {
	if s.Pod == "" {
		return s.Namespace
	}
	return s.Namespace + "/" + s.Pod
}

// Begin records that the mesh is suspended for the subject from now on, for a
// while.
func Begin(ctx context.Context, s Store, about Subject, duration time.Duration, reason string, policyOnly bool) (*bypass.Bypass, error) {
	if duration < time.Second {
		return nil, fmt.Errorf("a bypass for %v: want 1s or more, such as --for 30m", duration)
	}
	who, now, err := records.Sign(ctx, s, reason)
	if err != nil {
		return nil, err
	}
	b := &bypass.Bypass{Spec: bypass.Spec{
		Pod: about.Pod, PolicyOnly: policyOnly, Reason: reason, By: who, Since: records.Moment(now), Until: records.Moment(now.Add(duration)),
	}}
	b.Namespace, b.Name = about.Namespace, records.Name("bypass", about.String(), now)
	return b, s.Create(ctx, b)
}

// End ends, now, what is in force of a subject, or the one bypass of the name
// "NAMESPACE/NAME", and returns them. It is an error if there are none.
func End(ctx context.Context, s Store, what string) ([]*bypass.Bypass, error) {
	about, err := ParseSubject(what)
	if err != nil {
		return nil, err
	}
	inForce := func(b *bypass.Bypass, now time.Time) bool {
		named := b.String() == what
		meant := b.Namespace == about.Namespace && b.Spec.Pod == about.Pod
		return (named || meant) && b.Spec.Until != nil && now.Before(b.Spec.Until.Time)
	}
	none := fmt.Errorf("%s: no bypass of that name, or of that pod or namespace by itself, is in force; see tacit bypass list", what)
	return records.End(ctx, s, inForce, none, func(b *bypass.Bypass, now *metav1.Time, who string) {
		b.Spec.Until, b.Spec.EndedBy = now, who
	})
}
