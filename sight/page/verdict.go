package page

import (
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/sight/hour"
)

// reasonOf is the reason of a decision that was told by its word.
func reasonOf(word string) (policy.Reason, bool) {
	for r := policy.ReasonUndecided; r <= policy.ReasonLimited; r++ {
		if r.String() == word {
			return r, true
		}
	}
	return policy.ReasonUndecided, false
}

// verdict is why it was denied, in the words of tacit explain.
func verdict(d *hour.Denial) string {
	reason, known := reasonOf(d.Reason)
	switch {
	case d.Policy == "(hidden)":
		return "Denied by a policy of a namespace that you may not see."
	case known:
		text := policy.Decision{Reason: reason, Policy: d.Policy, Attribute: d.Attribute}.String()
		return "D" + text[1:] + "."
	case d.Reason != "":
		return "Denied: " + words(d.Reason) + "."
	}
	return "Denied by the other side."
}

// change is what would let it pass.
func change(d *hour.Denial) string {
	reason, _ := reasonOf(d.Reason)
	switch reason {
	case policy.ReasonDenied:
		return "Take what matched out of policy " + d.Policy + ", or call as somebody whom it does not name."
	case policy.ReasonNotAllowed:
		if d.SourceIdentity == "" && d.Why != "" {
			return "Opt the client into the mesh, so that it has an identity; then name it in an ALLOW policy such as " + d.Policy + "."
		}
		return "Name the client in an ALLOW policy such as " + d.Policy + "."
	case policy.ReasonMissingPolicy, policy.ReasonNotReady, policy.ReasonUnknownWorkload:
		return "Wait for the control plane; tacit status shows whether the proxy reaches it."
	case policy.ReasonRevoked:
		return "tacit identity list shows who revoked it and why; tacit identity restore takes it back."
	case policy.ReasonForeign:
		return "Name the client's trust domain in an ALLOW policy, or as an alias of this one."
	case policy.ReasonLimited:
		return "Raise rate limit " + d.Policy + ", or call less often."
	case policy.ReasonRequestsNow:
		return "Connect again: new connections are decided on request by request."
	case policy.ReasonUndecided, policy.ReasonAllowed, policy.ReasonNoPolicy, policy.ReasonAsk:
	}
	if d.ID != "" {
		return "tacit explain " + d.ID + " says more, while the proxy remembers it."
	}
	return ""
}
