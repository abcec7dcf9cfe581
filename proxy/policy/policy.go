// Package policy decides whether a connection is allowed, and says why.
//
// It is a pure function of an immutable snapshot and the facts of one
// connection, and allocates nothing. What does not belong here: where facts
// come from, and what is done with a denial.
package policy

import (
	"net/netip"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Request holds the facts of one connection towards a local workload. None
// of them is what a peer merely claims.
type Request struct {
	Source   netip.Addr     // address of the TCP peer
	Identity model.Identity // verified by mTLS; zero on plaintext
	// SourceWorkload is the workload at the source address. On mTLS it is
	// set only if its identity is the verified one; nil if unknown.
	SourceWorkload *model.Workload
	Destination    netip.AddrPort // the real target, never the tunnel's port
	Workload       *model.Workload
	Time           time.Time
}

// Reason is why a decision came out as it did.
type Reason uint8

// The zero reason belongs to the zero Decision, which denies.
const (
	ReasonUndecided       Reason = iota
	ReasonNotReady               // the first full list of policies is not in yet
	ReasonUnknownWorkload        // the destination is no workload of the snapshot
	ReasonMissingPolicy          // the workload names a policy that was never seen
	ReasonDenied                 // a DENY policy matched
	ReasonNotAllowed             // ALLOW policies exist and none matched
	ReasonAllowed                // an ALLOW policy matched
	ReasonNoPolicy               // no ALLOW policy covers the workload
)

// Decision is the outcome; its zero value denies.
type Decision struct {
	Allowed bool
	Reason  Reason
	// Policy is the key of the policy that decided, where one did. For
	// ReasonNotAllowed it is the candidate that came closest.
	Policy string
	// Attribute is what decided or failed in it, such as "principals" or
	// "from.source.notPrincipals"; empty where the whole policy did.
	Attribute string
	// DryRun is the key of a dry-run policy that would have changed the
	// outcome; empty if none would.
	DryRun string
}
