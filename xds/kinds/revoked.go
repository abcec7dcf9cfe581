package kinds

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RevokedIdentity denies everything from an identity, and everything to its
// workloads, for a while. It stays as the record of that.
type RevokedIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              RevokedIdentitySpec `json:"spec"`
	Status            any                 `json:"status,omitempty"`
}

// RevokedIdentitySpec says whose identity is revoked, and the rest of the story.
type RevokedIdentitySpec struct {
	Identity string `json:"identity"` // a SPIFFE id
	// Until is when the revocation ends by itself; nil: never.
	Until  *metav1.Time `json:"until,omitempty"`
	Reason string       `json:"reason,omitempty"`
	// By is who revoked it, and Since when, as they said themselves.
	By    string       `json:"by,omitempty"`
	Since *metav1.Time `json:"since,omitempty"`
	// RestoredBy is who ended it before its time.
	RestoredBy string `json:"restoredBy,omitempty"`
}

// Ended reports whether the revocation is over.
func (r *RevokedIdentity) Ended(now time.Time) bool {
	return r.Spec.Until != nil && !now.Before(r.Spec.Until.Time)
}
