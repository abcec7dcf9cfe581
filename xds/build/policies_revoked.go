package build

import (
	"slices"
	"strings"
	"time"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// revokedIdentity denies the identity at all workloads, and everybody at the
// identity's own workloads. Both are judged by the proxy of the destination.
func (b *policyBuilder) revokedIdentity(obj *kinds.RevokedIdentity) {
	st := newStatus("RevokedIdentity", &obj.ObjectMeta)
	defer func() { b.statuses = append(b.statuses, st) }()
	id, err := model.ParseIdentity(obj.Spec.Identity)
	switch {
	case obj.Namespace != b.root:
		st.say("not enforced: identities are revoked in namespace %s, by those who run the mesh", b.root)
		return
	case err == nil && id.TrustDomain != strings.ToLower(id.TrustDomain):
		st.say("spec.identity: not enforced: no certificate has capitals in its trust domain")
		return
	case err != nil:
		st.say("spec.identity: not enforced: %v", err)
		return
	case obj.Ended(b.now):
		st.say("not enforced any more: it ended at %s", obj.Spec.Until.UTC().Format(time.RFC3339))
		return
	}
	same := b.domains.same(id)
	var principals []model.StringMatch
	for _, id := range same {
		principals = append(principals, model.StringMatch{Kind: model.MatchExact, Value: id.Principal()})
	}
	from := &model.Policy{
		Name: model.RevokedIdentityOf + obj.Name, Namespace: obj.Namespace, Scope: model.ScopeGlobal, Action: model.ActionDeny,
		Rules: []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{Principals: principals}}}}}},
	}
	b.publish(from, policyScope{scope: model.ScopeGlobal}, &st)
	to := &model.Policy{
		Name: model.RevokedIdentityToOf + obj.Name, Namespace: obj.Namespace, Scope: model.ScopeSelector, Action: model.ActionDeny,
		Rules: []model.Rule{{Clauses: []model.Clause{{}}}}, // matches always
	}
	b.policies = append(b.policies, to)
	for i := range b.workloads {
		if w := &b.workloads[i]; slices.Contains(same, w.Identity) {
			b.attach(w.UID, to.Key())
		}
	}
}

// setRevoked notes a revocation, nil for one that is gone.
func (p *policySet) setRevoked(key objectKey, r *kinds.RevokedIdentity) {
	if r == nil {
		delete(p.revoked, key)
		return
	}
	if p.revoked == nil {
		p.revoked = map[objectKey]*kinds.RevokedIdentity{}
	}
	p.revoked[key] = r
}

// Advance tells the mesh what time it is, and returns what that changes in it:
// revocations and bypasses end by themselves.
func (m *Mesh) Advance(now time.Time) model.Update {
	before := m.policies.now
	m.policies.now = now
	return m.again(func() {
		for key, r := range m.policies.revoked {
			if r.Ended(before) != r.Ended(now) {
				m.stale.namespace[key.namespace] = true
			}
		}
		for _, b := range m.bypasses {
			if b.Phase(before, m.settings.MaxBypass) != b.Phase(now, m.settings.MaxBypass) {
				m.staleBypassed(b)
			}
		}
	})
}

// NextEnd is the first moment after that of Advance at which the mesh changes
// by itself; zero if there is none.
func (m *Mesh) NextEnd() (first time.Time) {
	for _, r := range m.policies.revoked {
		if r.Spec.Until == nil || r.Ended(m.policies.now) {
			continue
		}
		if first.IsZero() || r.Spec.Until.Time.Before(first) {
			first = r.Spec.Until.Time
		}
	}
	for _, b := range m.bypasses {
		if next := b.NextPhase(m.policies.now, m.settings.MaxBypass); !next.IsZero() && (first.IsZero() || next.Before(first)) {
			first = next
		}
	}
	return first
}
