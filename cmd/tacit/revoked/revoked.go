// Package revoked keeps the records of revoked identities, which tacitd acts
// on: as objects of a cluster, or as manifests in the directory that it reads.
//
// What does not belong here: what a revocation amounts to (xds/build), and
// flags (cmd/tacit).
package revoked

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Store is where records are.
type Store interface {
	// List gives all of them, in no order.
	List(context.Context) ([]*kinds.RevokedIdentity, error)
	// Create adds one that has a name of its own.
	Create(context.Context, *kinds.RevokedIdentity) error
	// Update writes the specification of one that List gave.
	Update(context.Context, *kinds.RevokedIdentity) error
	// Who is the person or program that writes.
	Who(context.Context) (string, error)
}

// Revoke records that an identity is revoked from now on, for a while.
func Revoke(ctx context.Context, s Store, id string, duration time.Duration, reason string) (*kinds.RevokedIdentity, error) {
	parsed, err := model.ParseIdentity(id)
	if err != nil {
		return nil, err
	}
	if parsed.TrustDomain != strings.ToLower(parsed.TrustDomain) {
		return nil, fmt.Errorf("%s: no certificate has capitals in its trust domain; write it as tacit certs does", id)
	}
	if duration <= 0 {
		return nil, fmt.Errorf("a revocation for %v: want more than 0, such as 24h", duration)
	}
	if strings.TrimSpace(reason) == "" {
		return nil, errors.New("say why: whoever finds the identity denied will ask")
	}
	who, err := s.Who(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	r := &kinds.RevokedIdentity{Spec: kinds.RevokedIdentitySpec{
		Identity: id, Reason: reason, By: who, Since: moment(now), Until: moment(now.Add(duration)),
	}}
	r.Name = nameOf(parsed, now)
	return r, s.Create(ctx, r)
}

// Restore ends, now, whatever revocations of an identity are in force, and
// returns them. It is an error if there are none.
func Restore(ctx context.Context, s Store, id string) ([]*kinds.RevokedIdentity, error) {
	if _, err := model.ParseIdentity(id); err != nil {
		return nil, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	inForce := slices.DeleteFunc(all, func(r *kinds.RevokedIdentity) bool { return r.Spec.Identity != id || r.Ended(now) })
	if len(inForce) == 0 {
		return nil, fmt.Errorf("%s is not revoked: see tacit identity list", id)
	}
	who, err := s.Who(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range inForce {
		r.Spec.Until, r.Spec.RestoredBy = moment(now), who
		if err := s.Update(ctx, r); err != nil {
			return nil, err
		}
	}
	return inForce, nil
}

// moment is of whole seconds, as the API keeps it: a revocation is never
// longer than it was said to be.
func moment(t time.Time) *metav1.Time {
	return &metav1.Time{Time: t.UTC().Truncate(time.Second)}
}

// nameOf tells revocations of the same identity apart by when they began.
func nameOf(id model.Identity, now time.Time) string {
	const most = 200 // of the 253 that there may be
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(id.Namespace+"-"+id.ServiceAccount))
	return "revoked-" + plain[:min(len(plain), most)] + "-" + strings.ReplaceAll(now.Format("20060102-150405.000"), ".", "-")
}
