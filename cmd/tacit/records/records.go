// Package records keeps objects of Tacit's own kinds that a person writes by a
// command and that stay as the record of what was done: in a cluster, or as
// manifests in the directory that tacitd reads.
//
// What does not belong here: what the objects amount to (xds/build), and flags
// (cmd/tacit).
package records

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/xds/build"
)

// Store is where the records of one kind are.
type Store[T any] interface {
	// List gives all of them, in no order.
	List(context.Context) ([]*T, error)
	// Create adds one that has a name and a namespace of its own.
	Create(context.Context, *T) error
	// Update writes the specification of one that List gave.
	Update(context.Context, *T) error
	// Who is the person or program that writes.
	Who(context.Context) (string, error)
}

// Kind is what differs between kinds.
type Kind[T any] struct {
	APIVersion, Kind, Resource string
	Doing                      string // what writing one is, such as "revoking"
	// Object gives access to what all kinds have.
	Object func(*T) metav1.Object
	Type   func(*T) *metav1.TypeMeta
	Spec   func(*T) any
	// Of are those among objects that were read from manifests.
	Of func(*build.Objects) []*T
}

// Moment is of whole seconds, as the API keeps it: a record never lasts longer
// than it was said to.
func Moment(t time.Time) *metav1.Time {
	return &metav1.Time{Time: t.UTC().Truncate(time.Second)}
}

// Name tells records about the same thing apart by when they began.
func Name(kind, about string, now time.Time) string {
	const most = 200 // of the 253 that there may be
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(about))
	return kind + "-" + plain[:min(len(plain), most)] + "-" + strings.ReplaceAll(now.Format("20060102-150405.000"), ".", "-")
}

// Sign says who writes a record and when, where there is a reason to.
func Sign[T any](ctx context.Context, s Store[T], reason string) (who string, now time.Time, err error) {
	if strings.TrimSpace(reason) == "" {
		return "", now, errors.New("say why (--reason): whoever finds it in force will ask")
	}
	who, err = s.Who(ctx)
	return who, time.Now().UTC(), err
}

// End ends, now, the records that are in force and meant, and returns them. It is
// the error none if there are none.
func End[T any](ctx context.Context, s Store[T], inForce func(r *T, now time.Time) bool, none error, end func(r *T, now *metav1.Time, who string)) ([]*T, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	all = slices.DeleteFunc(all, func(r *T) bool { return !inForce(r, now) })
	if len(all) == 0 {
		return nil, none
	}
	who, err := s.Who(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		end(r, Moment(now), who)
		if err := s.Update(ctx, r); err != nil {
			return nil, err
		}
	}
	return all, nil
}
