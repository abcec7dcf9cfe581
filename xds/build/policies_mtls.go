package build

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/tacit-mesh/tacit/xds/model"
)

// peerAuthentications turns STRICT into DENY policies against callers without
// an identity. For each workload its own, its namespace's and the mesh's
// setting count, in this order, the oldest object of each level.
func (b *policyBuilder) peerAuthentications(objs []*securityv1.PeerAuthentication) {
	if len(objs) == 0 {
		return
	}
	// Always there, so that workloads come and go under it.
	strict := &model.Policy{
		Name: model.StaticStrictName, Namespace: b.root, Scope: model.ScopeSelector, Action: model.ActionDeny,
		Rules: denyPlaintext(model.Match{}),
	}
	b.policies = append(b.policies, strict)

	levels := sortLevels(b.root, objs)
	for i := range b.workloads {
		if p := levels.effective(b, &b.workloads[i], strict); p != nil {
			b.attach(b.workloads[i].UID, p.Key())
		}
	}
	for _, level := range levels.all() {
		if level.converted != nil {
			b.policies = append(b.policies, level.converted)
		}
		b.finish(level)
	}
}

// denyPlaintext matches connections without an identity that fit m.
func denyPlaintext(m model.Match) []model.Rule {
	m.NotPrincipals = []model.StringMatch{{Kind: model.MatchPresence}}
	return []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{m}}}}}
}

// peerAuth is one PeerAuthentication on its way.
type peerAuth struct {
	obj       *securityv1.PeerAuthentication
	status    PolicyStatus
	converted *model.Policy // for workloads with settings per port
	covered   []*PolicyTarget
	older     *peerAuth // one that took a workload from this one
}

// peerAuthLevels are the objects in force at each level, and those that are not.
type peerAuthLevels struct {
	mesh        *peerAuth
	byNamespace map[string]*peerAuth
	bySelector  map[string][]*peerAuth // namespace -> oldest first
	rest        []*peerAuth
}

func sortLevels(root string, objs []*securityv1.PeerAuthentication) *peerAuthLevels {
	l := &peerAuthLevels{byNamespace: map[string]*peerAuth{}, bySelector: map[string][]*peerAuth{}}
	objs = slices.Clone(objs)
	slices.SortStableFunc(objs, func(x, y *securityv1.PeerAuthentication) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), strings.Compare(x.Name, y.Name))
	})
	for _, obj := range objs {
		p := &peerAuth{obj: obj, status: PolicyStatus{
			Kind: "PeerAuthentication", Namespace: obj.Namespace, Name: obj.Name,
			Generation: obj.Generation, Enforced: true, Layer: layer4,
		}}
		p.check()
		selector := len(obj.Spec.GetSelector().GetMatchLabels()) > 0
		first := l.byNamespace[obj.Namespace]
		switch {
		case selector && obj.Namespace == root:
			p.refuse("spec.selector: not enforced: a PeerAuthentication with a selector has no effect in the root namespace")
			l.rest = append(l.rest, p)
		case selector:
			l.bySelector[obj.Namespace] = append(l.bySelector[obj.Namespace], p)
		case first != nil:
			p.refuse("not enforced: PeerAuthentication %s/%s of the same scope is older", first.obj.Namespace, first.obj.Name)
			l.rest = append(l.rest, p)
		default:
			l.byNamespace[obj.Namespace] = p
		}
	}
	l.mesh = l.byNamespace[root]
	delete(l.byNamespace, root)
	for namespace, list := range l.bySelector {
		for _, p := range list {
			p.convert(l.strictIn(namespace))
		}
	}
	return l
}

func (p *peerAuth) refuse(format string, args ...any) {
	p.status.Enforced = false
	p.status.say(format, args...)
}

// check notes what is not enforced as written, whichever workloads it covers.
func (p *peerAuth) check() {
	spec := &p.obj.Spec
	p.checkMode("spec.mtls.mode", spec.GetMtls().GetMode())
	if len(spec.PortLevelMtls) > 0 && len(spec.GetSelector().GetMatchLabels()) == 0 {
		p.status.say("spec.portLevelMtls: not enforced: it takes a selector")
		return
	}
	for _, port := range slices.Sorted(maps.Keys(spec.PortLevelMtls)) {
		if port == 0 || port > 65535 {
			p.status.say("spec.portLevelMtls[%d]: no such port (1-65535)", port)
		}
		p.checkMode("spec.portLevelMtls.mode", spec.PortLevelMtls[port].GetMode())
	}
}

func (p *peerAuth) checkMode(field string, mode securityv1beta1.PeerAuthentication_MutualTLS_Mode) {
	switch mode {
	case securityv1beta1.PeerAuthentication_MutualTLS_DISABLE:
		p.status.say("%s: DISABLE is taken for PERMISSIVE: callers in the mesh still use mTLS", field)
	case securityv1beta1.PeerAuthentication_MutualTLS_UNSET,
		securityv1beta1.PeerAuthentication_MutualTLS_PERMISSIVE,
		securityv1beta1.PeerAuthentication_MutualTLS_STRICT:
	default:
		p.status.say("%s: %d is not known: taken for STRICT", field, mode)
	}
}

// strictOr is the mode's meaning where an unset one inherits.
func strictOr(inherited bool, mode securityv1beta1.PeerAuthentication_MutualTLS_Mode) bool {
	switch mode {
	case securityv1beta1.PeerAuthentication_MutualTLS_UNSET:
		return inherited
	case securityv1beta1.PeerAuthentication_MutualTLS_PERMISSIVE, securityv1beta1.PeerAuthentication_MutualTLS_DISABLE:
		return false
	}
	return true
}

func (p *peerAuth) mode() securityv1beta1.PeerAuthentication_MutualTLS_Mode {
	if p == nil {
		return securityv1beta1.PeerAuthentication_MutualTLS_UNSET
	}
	return p.obj.Spec.GetMtls().GetMode()
}

// strictIn says whether a namespace's default is STRICT.
func (l *peerAuthLevels) strictIn(namespace string) bool {
	return strictOr(strictOr(false, l.mesh.mode()), l.byNamespace[namespace].mode())
}

// convert makes the policy for settings per port that differ from the default.
func (p *peerAuth) convert(inherited bool) {
	strict := strictOr(inherited, p.mode())
	var ports []uint16
	for _, port := range slices.Sorted(maps.Keys(p.obj.Spec.PortLevelMtls)) {
		if port > 0 && port <= 65535 && strictOr(strict, p.obj.Spec.PortLevelMtls[port].GetMode()) != strict {
			ports = append(ports, uint16(port))
		}
	}
	if len(ports) == 0 {
		return
	}
	match := model.Match{DestinationPorts: ports}
	if strict {
		match = model.Match{NotDestinationPorts: ports}
	}
	p.converted = &model.Policy{
		Name: model.PeerAuthenticationOf + p.obj.Name, Namespace: p.obj.Namespace,
		Scope: model.ScopeSelector, Action: model.ActionDeny, Rules: denyPlaintext(match),
	}
}

// effective is the policy that the workload gets; nil for plaintext allowed.
func (l *peerAuthLevels) effective(b *policyBuilder, w *PolicyTarget, strict *model.Policy) *model.Policy {
	var own *peerAuth
	for _, p := range l.bySelector[w.Namespace] {
		switch {
		case !b.selects(p.obj.Namespace, p.obj.Spec.Selector, w):
		case own == nil:
			own = p
			p.covered = append(p.covered, w)
		default:
			p.older = own
		}
	}
	for _, p := range []*peerAuth{l.byNamespace[w.Namespace], l.mesh} {
		if p != nil {
			p.covered = append(p.covered, w)
		}
	}
	switch {
	case own != nil && own.converted != nil:
		return own.converted
	case strictOr(l.strictIn(w.Namespace), own.mode()):
		return strict
	}
	return nil
}

func (l *peerAuthLevels) all() []*peerAuth {
	out := slices.Clone(l.rest)
	if l.mesh != nil {
		out = append(out, l.mesh)
	}
	out = slices.AppendSeq(out, maps.Values(l.byNamespace))
	for _, list := range l.bySelector {
		out = append(out, list...)
	}
	return out
}

func (b *policyBuilder) finish(p *peerAuth) {
	if p.older != nil {
		where := "on workloads that"
		if len(p.covered) == 0 {
			p.status.Enforced = false
			where = "because"
		}
		p.status.say("not enforced %s PeerAuthentication %s/%s, which is older, selects as well", where, p.older.obj.Namespace, p.older.obj.Name)
	} else if p.status.Enforced && len(p.covered) == 0 && len(p.obj.Spec.GetSelector().GetMatchLabels()) > 0 {
		p.status.say(NobodySelected)
	}
	if strictOr(false, p.mode()) || p.converted != nil {
		p.status.sayGaps(p.covered, p.converted)
	}
	b.statuses = append(b.statuses, p.status)
}
