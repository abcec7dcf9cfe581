// Package jwt verifies the tokens of requests by the rules of a snapshot, and
// says what becomes of them when the request is forwarded.
//
// Key sets come in the snapshot: nothing here fetches anything. What does not
// belong here: what claims allow (proxy/policy), and the answer to a request
// that is refused.
package jwt

import (
	"time"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Outcome is what became of a request's tokens.
type Outcome uint8

// The outcomes. Only Refused ends a request, with status 401.
const (
	NoRules  Outcome = iota // nothing says which tokens are accepted: they are none of our business
	NoToken                 // there is none where the rules look for one
	Verified                // all are accepted
	Refused
)

// Challenge is the value of WWW-Authenticate for a request that is refused.
const Challenge = `Bearer error="invalid_token"`

// Result is what the tokens of one request amount to.
type Result struct {
	Outcome Outcome
	// Claims are those of the token of the first rule that accepts one.
	Claims *policy.Claims
	// Policy is the key of the RequestAuthentication behind the outcome, and
	// Reason why a token was refused, for the log.
	Policy, Reason string

	change change
}

// maxTokens bounds the work that one request can cause.
const maxTokens = 8

// Verifier verifies tokens, and remembers which it has verified.
type Verifier struct{ cache cache }

// NewVerifier returns an empty one. It is safe for concurrent use.
func NewVerifier() *Verifier { return &Verifier{cache: newCache()} }

// Authenticate verifies the tokens in the headers and the query (without "?")
// of a request to a port of a workload.
func (v *Verifier) Authenticate(s *model.Snapshot, w *model.Workload, port uint16, headers []policy.HeaderField, query string, now time.Time) Result {
	var result Result
	var seen []presented
	for key, rule := range policy.JWTRules(s, w, port) {
		result.change.protect(rule)
		if result.Outcome == NoRules {
			result.Outcome, result.Policy = NoToken, key
		}
		seen = present(seen, rule, key, headers, query)
		if len(seen) > maxTokens {
			return Result{Outcome: Refused, Policy: key, Reason: "more tokens than are looked at"}
		}
	}
	for i := range seen {
		t := &seen[i]
		accepted := v.verify(t, now)
		if accepted == nil {
			return Result{Outcome: Refused, Policy: t.policy, Reason: t.reason}
		}
		if result.Outcome != Verified {
			result.Outcome, result.Policy, result.Claims = Verified, t.policy, accepted.claims
		}
		result.change.add(t, accepted)
	}
	return result
}

// presented is a token in a request, and the rules that look for one there.
type presented struct {
	place    place
	token    string
	rules    []*model.JWTRule
	policies []string
	// policy, rule and reason are the outcome of verify.
	policy string
	rule   *model.JWTRule
	reason string
}

// verify returns nil if no rule accepts the token. The reason is then that of
// the rule that came closest: one of the token's own issuer.
func (v *Verifier) verify(t *presented, now time.Time) *token {
	t.policy, t.reason = t.policies[0], "its issuer is none of those accepted"
	for i, rule := range t.rules {
		accepted, reason := v.cache.verify(rule, t.token, now)
		if reason == "" {
			t.policy, t.rule = t.policies[i], rule
			return accepted
		}
		if reason != otherIssuer {
			t.policy, t.reason = t.policies[i], reason
		}
	}
	return nil
}
