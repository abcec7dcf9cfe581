// Package revoked writes the records of revoked identities, which tacitd acts on.
//
// What does not belong here: where the records are (cmd/tacit/records), what a
// revocation amounts to (xds/build), and flags (cmd/tacit).
package revoked

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/cmd/tacit/records"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Store is where records are.
type Store = records.Store[kinds.RevokedIdentity]

// Kind is RevokedIdentity, for stores.
func Kind() records.Kind[kinds.RevokedIdentity] {
	return records.Kind[kinds.RevokedIdentity]{
		APIVersion: kinds.RevokedIdentityVersion, Kind: "RevokedIdentity", Resource: "revokedidentities", Doing: "revoking",
		Object: func(r *kinds.RevokedIdentity) metav1.Object { return r },
		Type:   func(r *kinds.RevokedIdentity) *metav1.TypeMeta { return &r.TypeMeta },
		Spec:   func(r *kinds.RevokedIdentity) any { return r.Spec },
		Of:     func(o *build.Objects) []*kinds.RevokedIdentity { return o.RevokedIdentities },
	}
}

// Revoke records in the root namespace of the mesh that an identity is revoked
// from now on, for a while.
func Revoke(ctx context.Context, s Store, root, id string, duration time.Duration, reason string) (*kinds.RevokedIdentity, error) {
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
	who, now, err := records.Sign(ctx, s, reason)
	if err != nil {
		return nil, err
	}
	r := &kinds.RevokedIdentity{Spec: kinds.RevokedIdentitySpec{
		Identity: id, Reason: reason, By: who, Since: records.Moment(now), Until: records.Moment(now.Add(duration)),
	}}
	r.Name, r.Namespace = nameOf(parsed, now), root
	return r, s.Create(ctx, r)
}

// Restore ends, now, whatever revocations of an identity are in force, and
// returns them. It is an error if there are none.
func Restore(ctx context.Context, s Store, id string) ([]*kinds.RevokedIdentity, error) {
	if _, err := model.ParseIdentity(id); err != nil {
		return nil, err
	}
	inForce := func(r *kinds.RevokedIdentity, now time.Time) bool { return r.Spec.Identity == id && !r.Ended(now) }
	none := fmt.Errorf("%s is not revoked: see tacit identity list", id)
	return records.End(ctx, s, inForce, none, func(r *kinds.RevokedIdentity, now *metav1.Time, who string) {
		r.Spec.Until, r.Spec.RestoredBy = now, who
	})
}

// nameOf tells revocations of the same identity apart by when they began.
func nameOf(id model.Identity, now time.Time) string {
	return records.Name("revoked", id.Namespace+"-"+id.ServiceAccount, now)
}
