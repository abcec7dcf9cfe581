package build

import (
	"fmt"
	"time"

	typev1beta1 "istio.io/api/type/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// rateLimit translates one RateLimit. A limit that cannot be understood is none,
// and the status says so.
func (b *policyBuilder) rateLimit(obj *kinds.RateLimit) {
	st := newStatus("RateLimit", &obj.ObjectMeta)
	var refs []*typev1beta1.PolicyTargetReference
	if obj.Spec.TargetRef != nil {
		refs = append(refs, obj.Spec.TargetRef.Proto())
	}
	if t, ours := b.scope(obj.Namespace, labelSelector(obj.Spec.Selector, &st), refs, &st); ours {
		p := limitPolicy(limitPrefix, &obj.ObjectMeta, t)
		p.DryRun = dryRun(obj.Annotations, &st)
		if obj.Spec.Shared {
			if p.RateLimit.Store = b.store; b.store == nil {
				st.say("spec.shared: the configuration of the mesh has no store: each node counts for itself")
			}
		}
		for i := range obj.Spec.Limits {
			b.limit(p, fmt.Sprintf("spec.limits[%d]", i), &obj.Spec.Limits[i], &st)
		}
		b.publish(p, t, &st)
		st.Enforced = st.Enforced && len(p.RateLimit.Limits) > 0
	}
	b.statuses = append(b.statuses, st)
}

func limitPolicy(prefix string, meta *metav1.ObjectMeta, t policyScope) *model.Policy {
	return &model.Policy{
		Name: prefix + meta.Name, Namespace: meta.Namespace, Scope: t.scope, Ports: t.ports,
		Action: model.ActionLimit, RateLimit: &model.RateLimit{},
	}
}

func (b *policyBuilder) limit(p *model.Policy, path string, in *kinds.Limit, st *PolicyStatus) {
	if err := in.Check(); err != nil {
		st.say("%s: not enforced: %v", path, err)
		return
	}
	out := model.Limit{Unit: model.LimitRequests, Amount: in.Requests, Interval: in.Interval.Truncate(time.Millisecond), Burst: in.Burst}
	switch {
	case in.Connections > 0:
		out.Unit, out.Amount = model.LimitConnections, in.Connections
	case in.Bytes > 0:
		out.Unit, out.Amount = model.LimitBytes, in.Bytes
	}
	if out.Burst == 0 {
		out.Burst = out.Amount
	}
	if per := in.Per; per != nil {
		switch {
		case per.Identity:
			out.Per = model.LimitPerIdentity
		case per.Header != "":
			out.Per, out.Key = model.LimitPerHeader, per.Header
		case per.Claim != "":
			out.Per, out.Key = model.LimitPerClaim, per.Claim
		}
	}
	for i, rule := range in.Rules {
		r := ruleReader{builder: b, status: st, namespace: p.Namespace, action: p.Action}
		out.Rules = append(out.Rules, r.read(fmt.Sprintf("%s.rules[%d]", path, i), rule.Rule))
	}
	p.RateLimit.Limits = append(p.RateLimit.Limits, out)
}

// linkerdRateLimit translates Linkerd's HTTPLocalRateLimitPolicy: requests per
// second to the port of a Server, for each of its pods, in total and for each
// client. A client without an identity counts together with the others.
func (b *policyBuilder) linkerdRateLimit(obj *kinds.HTTPLocalRateLimitPolicy, servers []*kinds.Server) {
	st := newStatus("HTTPLocalRateLimitPolicy", &obj.ObjectMeta)
	defer func() { b.statuses = append(b.statuses, st) }()
	ref := obj.Spec.TargetRef
	var server *kinds.Server
	for _, s := range servers {
		if s.Namespace == obj.Namespace && s.Name == ref.Name && ref.Kind == "Server" {
			server = s
		}
	}
	if server == nil {
		st.say("spec.targetRef: not enforced: no Server %s/%s", obj.Namespace, ref.Name)
		return
	}
	selector := labelSelector(server.Spec.PodSelector, &st)
	t, _ := b.scope(obj.Namespace, selector, nil, &st)
	if t.scope == model.ScopeGlobal { // Linkerd knows no mesh-wide objects
		t.scope, t.namespace = model.ScopeNamespace, obj.Namespace
	}
	port := server.Spec.Port
	if t.ports = b.portNumbers[obj.Namespace][port.StrVal]; port.Type == intstr.Int && port.IntVal > 0 && port.IntVal <= 65535 {
		t.ports = []uint16{uint16(port.IntVal)}
	}
	if len(t.ports) == 0 {
		st.say("spec.targetRef: no pod has the port %s of Server %s, so all ports of its pods are covered", port.String(), ref.Name)
	}
	p := limitPolicy(linkerdLimitPrefix, &obj.ObjectMeta, t)
	if total := obj.Spec.Total; total != nil {
		p.RateLimit.Limits = append(p.RateLimit.Limits, perSecond(model.LimitTotal, total.RequestsPerSecond))
	}
	if identity := obj.Spec.Identity; identity != nil || len(obj.Spec.Overrides) > 0 {
		b.perClient(p, obj, &st)
	}
	for i := len(p.RateLimit.Limits) - 1; i >= 0; i-- {
		if p.RateLimit.Limits[i].Amount == 0 {
			st.say("spec: a limit of 0 requests per second is not enforced")
			p.RateLimit.Limits = append(p.RateLimit.Limits[:i], p.RateLimit.Limits[i+1:]...)
		}
	}
	b.publish(p, t, &st)
	st.Enforced = len(p.RateLimit.Limits) > 0
}

func perSecond(per model.LimitKey, amount uint64) model.Limit {
	return model.Limit{Unit: model.LimitRequests, Amount: amount, Interval: time.Second, Burst: amount, Per: per, PerWorkload: true}
}

// perClient: clients of an override do not count against the general amount.
func (b *policyBuilder) perClient(p *model.Policy, obj *kinds.HTTPLocalRateLimitPolicy, st *PolicyStatus) {
	var named []model.ServiceAccount
	for i, o := range obj.Spec.Overrides {
		l := perSecond(model.LimitPerIdentity, o.RequestsPerSecond)
		var clients []model.ServiceAccount
		for _, c := range o.ClientRefs {
			if c.Kind != "ServiceAccount" || c.Group != "" {
				st.say("spec.overrides[%d].clientRefs: %s %s is no ServiceAccount: not used", i, c.Kind, c.Name)
				continue
			}
			namespace := c.Namespace
			if namespace == "" {
				namespace = obj.Namespace
			}
			clients = append(clients, model.ServiceAccount{Namespace: namespace, Name: c.Name})
		}
		if len(clients) == 0 {
			continue
		}
		named = append(named, clients...)
		l.Rules = []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{ServiceAccounts: clients}}}}}}
		p.RateLimit.Limits = append(p.RateLimit.Limits, l)
	}
	if obj.Spec.Identity == nil {
		return
	}
	l := perSecond(model.LimitPerIdentity, obj.Spec.Identity.RequestsPerSecond)
	if len(named) > 0 {
		l.Rules = []model.Rule{{Clauses: []model.Clause{{Matches: []model.Match{{NotServiceAccounts: named}}}}}}
	}
	p.RateLimit.Limits = append(p.RateLimit.Limits, l)
}
