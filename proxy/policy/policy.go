// Package policy decides whether a connection, or a request of HTTP on it, is
// allowed, and says why.
//
// It is a pure function of an immutable snapshot and the facts of one
// connection or request, and allocates nothing. What does not belong here: where facts
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
	// set only if its identity is the verified one; nil if unknown. Its
	// labels count only with a verified identity, hence not on plaintext.
	SourceWorkload *model.Workload
	Destination    netip.AddrPort // the real target, never the tunnel's port
	// Workload is the destination, as it is in the snapshot.
	Workload *model.Workload
	Time     time.Time
	// Revoked says that the certificate of Identity has been taken back.
	Revoked bool
	// Bypass is that of the decision which let the connection or request in,
	// if it was one's work: its end does not cut what it has let in.
	Bypass string
	// HTTP is the request of HTTP to decide about; nil for a connection that
	// carries something else, or of which that is not known.
	HTTP *HTTPRequest
	// ServerName is what the ClientHello names, where the connection's bytes
	// begin with one; empty if not known.
	ServerName string
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
	ReasonAsk                    // allowed if the provider of a CUSTOM policy agrees
	ReasonRequestsNow            // a policy about requests came over the live connection
	ReasonRevoked                // the client's certificate has been revoked
	ReasonForeign                // the client is of another trust domain, and no policy names it
	ReasonLimited                // more connections, or bytes of one that carries no HTTP, than a limit allows
	ReasonBypassed               // policies would deny, and a Bypass suspends them
)

// String is the reason as a label of metrics: lower case, words joined by "_".
func (r Reason) String() string {
	switch r {
	case ReasonUndecided:
		return "undecided"
	case ReasonNotReady:
		return "not_ready"
	case ReasonUnknownWorkload:
		return "unknown_workload"
	case ReasonMissingPolicy:
		return "missing_policy"
	case ReasonDenied:
		return "denied"
	case ReasonNotAllowed:
		return "not_allowed"
	case ReasonAllowed:
		return "allowed"
	case ReasonNoPolicy:
		return "no_policy"
	case ReasonAsk:
		return "ask"
	case ReasonRequestsNow:
		return "requests_now"
	case ReasonRevoked:
		return "revoked"
	case ReasonForeign:
		return "foreign_trust_domain"
	case ReasonLimited:
		return "rate_limited"
	case ReasonBypassed:
		return "bypassed"
	}
	return "unknown"
}

// Decision is the outcome; its zero value denies.
type Decision struct {
	Allowed bool
	Reason  Reason
	// Policy is the key of the policy that decided, where one did. For
	// ReasonNotAllowed it is the candidate that came closest.
	Policy string
	// Attribute is what decided or failed in it, such as "principals" or
	// "notPrincipals", or the part that could not be understood; empty where
	// the whole policy did.
	Attribute string
	// Provider is to be asked, for ReasonAsk; nil otherwise. If it agrees, the
	// request is allowed: nothing else denies it.
	Provider *model.Provider
	// Audit is the key of an AUDIT policy that matched.
	Audit string
	// DryRun is the key of a dry-run policy by which the outcome would have
	// been the other one, had those on dry run been enforced; empty if it
	// would not.
	DryRun string
	// Bypass is "NAMESPACE/NAME" of the Bypass that decided, for
	// ReasonBypassed; DryRun is then what would have denied.
	Bypass string
}

// String is the decision in one line for people.
func (d Decision) String() string {
	text := d.text()
	if d.DryRun == "" || d.Reason == ReasonBypassed {
		return text
	}
	if d.Allowed {
		return text + "; dry run: policy " + d.DryRun + " would deny"
	}
	return text + "; dry run: policy " + d.DryRun + " would allow"
}

func (d Decision) text() string {
	switch d.Reason {
	case ReasonNotReady:
		return "denied: the control plane has not sent its policies yet"
	case ReasonUnknownWorkload:
		return "denied: the control plane has not sent the destination workload"
	case ReasonMissingPolicy:
		return "denied: policy " + d.Policy + " is named by the workload, and the control plane has not sent it"
	case ReasonDenied:
		if d.Attribute == "" {
			return "denied by policy " + d.Policy
		}
		return "denied by policy " + d.Policy + " (matched: " + d.Attribute + ")"
	case ReasonNotAllowed:
		if d.Attribute == "" {
			return "denied: no ALLOW policy matched; policy " + d.Policy + " has no rule that could"
		}
		return "denied: no ALLOW policy matched; closest was " + d.Policy + " (not matched: " + d.Attribute + ")"
	case ReasonAllowed:
		return "allowed by policy " + d.Policy
	case ReasonNoPolicy:
		return "allowed: no ALLOW policy covers the workload"
	case ReasonAsk:
		return "denied unless the provider of policy " + d.Policy + " allows it"
	case ReasonRequestsNow:
		return "denied: a policy about the requests of HTTP covers the port now, and the connection is from before it"
	case ReasonRevoked:
		return "denied: the client's certificate has been revoked"
	case ReasonForeign:
		return "denied: the client is of another trust domain, and no ALLOW policy names it"
	case ReasonLimited:
		return "denied: more than rate limit " + d.Policy + " allows"
	case ReasonBypassed:
		return "allowed by bypass " + d.Bypass + "; without it denied: " + d.DryRun
	case ReasonUndecided:
	}
	return "denied: undecided"
}
