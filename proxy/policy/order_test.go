package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	securityv1beta1 "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/wire"
)

// cluster is what users have: pods and policies, by name.
type cluster struct {
	pods   map[string]map[string]string // labels
	authz  map[string]*securityv1.AuthorizationPolicy
	peers  map[string]*securityv1.PeerAuthentication
	addrOf map[string]netip.Addr
}

var podNames = []string{"a/p", "a/q", "b/p"}

func newCluster() *cluster {
	c := &cluster{
		pods: map[string]map[string]string{}, authz: map[string]*securityv1.AuthorizationPolicy{},
		peers: map[string]*securityv1.PeerAuthentication{}, addrOf: map[string]netip.Addr{},
	}
	for i, name := range podNames {
		c.addrOf[name] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
	}
	return c
}

// build is what a control plane makes of the cluster.
func (c *cluster) build() *build.Result {
	in := build.PolicyInput{RootNamespace: "root"}
	for _, name := range slices.Sorted(maps.Keys(c.pods)) {
		namespace, _, _ := strings.Cut(name, "/")
		in.Workloads = append(in.Workloads, build.PolicyTarget{UID: name, Namespace: namespace, Labels: c.pods[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(c.authz)) {
		in.AuthorizationPolicies = append(in.AuthorizationPolicies, c.authz[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.peers)) {
		in.PeerAuthentications = append(in.PeerAuthentications, c.peers[name])
	}
	policies := build.Policies(in)
	r := &build.Result{Policies: policies.Policies}
	for _, w := range in.Workloads {
		id := identityOf(w.UID)
		r.Workloads = append(r.Workloads, &model.Workload{
			UID: w.UID, Namespace: w.Namespace, ServiceAccount: id.ServiceAccount, TrustDomain: id.TrustDomain,
			Addresses: []netip.Addr{c.addrOf[w.UID]}, Policies: policies.Attached[w.UID], Labels: policies.Labels(w.Labels),
		})
	}
	return r
}

func identityOf(pod string) model.Identity {
	namespace, name, _ := strings.Cut(pod, "/")
	return model.Identity{TrustDomain: "td", Namespace: namespace, ServiceAccount: name}
}

// change does to the cluster what one command of a user does.
func (c *cluster) change(t *rapid.T) {
	switch rapid.IntRange(0, 5).Draw(t, "change") {
	case 0:
		delete(c.pods, rapid.SampledFrom(podNames).Draw(t, "pod that goes"))
	case 1:
		name := rapid.SampledFrom(podNames).Draw(t, "pod")
		c.pods[name] = map[string]string{"app": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app")}
	case 2:
		delete(c.authz, rapid.SampledFrom([]string{"a/1", "a/2", "root/1"}).Draw(t, "policy that goes"))
	case 3:
		p := drawAuthorization(t)
		c.authz[p.Namespace+"/"+p.Name] = p
	case 4:
		delete(c.peers, rapid.SampledFrom([]string{"a/1", "a/2", "root/1"}).Draw(t, "peer authentication that goes"))
	case 5:
		p := drawPeerAuthentication(t)
		c.peers[p.Namespace+"/"+p.Name] = p
	}
}

func drawSelector(t *rapid.T) *typev1beta1.WorkloadSelector {
	app := rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "selector")
	if app == "" {
		return nil
	}
	return &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
}

func drawAuthorization(t *rapid.T) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{}
	p.Namespace, p.Name, _ = strings.Cut(rapid.SampledFrom([]string{"a/1", "a/2", "root/1"}).Draw(t, "policy"), "/")
	p.Spec.Selector = drawSelector(t)
	p.Spec.Action = rapid.SampledFrom([]securityv1beta1.AuthorizationPolicy_Action{0, 1}).Draw(t, "action")
	for range rapid.IntRange(0, 2).Draw(t, "rules") {
		rule := &securityv1beta1.Rule{}
		switch rapid.IntRange(0, 3).Draw(t, "rule") {
		case 0:
			rule.To = []*securityv1beta1.Rule_To{{Operation: &securityv1beta1.Operation{Ports: []string{rapid.SampledFrom([]string{"80", "81"}).Draw(t, "port")}}}}
		case 1:
			rule.From = []*securityv1beta1.Rule_From{{Source: &securityv1beta1.Source{Namespaces: []string{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "from")}}}}
		case 2:
			rule.When = []*securityv1beta1.Condition{{
				Key:    rapid.SampledFrom([]string{"source.labels[app]", "source.labels[tier]"}).Draw(t, "label"),
				Values: rapid.SampledFrom([][]string{nil, {"x"}, {""}}).Draw(t, "values"), NotValues: []string{"z"},
			}}
		case 3: // matches always
		}
		p.Spec.Rules = append(p.Spec.Rules, rule)
	}
	return p
}

func drawPeerAuthentication(t *rapid.T) *securityv1.PeerAuthentication {
	mode := rapid.Map(rapid.Int32Range(0, 3), func(m int32) *securityv1beta1.PeerAuthentication_MutualTLS {
		return &securityv1beta1.PeerAuthentication_MutualTLS{Mode: securityv1beta1.PeerAuthentication_MutualTLS_Mode(m)}
	})
	p := &securityv1.PeerAuthentication{}
	p.Namespace, p.Name, _ = strings.Cut(rapid.SampledFrom([]string{"a/1", "a/2", "root/1"}).Draw(t, "peer authentication"), "/")
	p.Spec.Selector = drawSelector(t)
	p.Spec.Mtls = mode.Draw(t, "mode")
	p.Spec.PortLevelMtls = rapid.MapOfN(rapid.SampledFrom([]uint32{80, 81}), mode, 0, 2).Draw(t, "ports")
	return p
}

// outcomes decides every request that these pods can make of each other, with
// and without mTLS. A destination that the snapshot lacks is left out.
func (c *cluster) outcomes(s *model.Snapshot) map[string]policy.Decision {
	out := map[string]policy.Decision{}
	for _, to := range podNames {
		w := s.Workload(to)
		if w == nil {
			continue
		}
		for _, from := range podNames {
			for _, id := range []model.Identity{{}, identityOf(from)} {
				for _, port := range []uint16{80, 81} {
					r := policy.Request{
						Source: c.addrOf[from], Identity: id, SourceWorkload: s.WorkloadAt("", c.addrOf[from]),
						Destination: netip.AddrPortFrom(c.addrOf[to], port), Workload: w, Time: time.Unix(0, 0),
					}
					out[fmt.Sprintf("%s (%v) to %s:%d", from, id, to, port)] = policy.Evaluate(s, &r)
				}
			}
		}
	}
	return out
}

// Whatever the order in which resources arrive, what is denied in the end is
// never allowed on the way: a proxy that has the mesh's and the namespaces'
// policies needs no particular order of the rest.
func TestArrivalInAnyOrderOpensNoWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster()
		for range rapid.IntRange(1, 10).Draw(t, "changes") {
			c.change(t)
		}
		whole := c.build()
		will := c.outcomes(model.NewSnapshot().Apply(whole.Since(nil)))
		var updates []model.Update
		wide := 0 // policies of the mesh and of namespaces still to come
		for _, w := range whole.Workloads {
			updates = append(updates, model.Update{Workloads: []*model.Workload{w}})
		}
		for _, p := range whole.Policies {
			updates = append(updates, model.Update{Policies: []*model.Policy{p}})
			if p.Scope != model.ScopeSelector {
				wide++
			}
		}
		s := model.NewSnapshot()
		for _, u := range rapid.Permutation(updates).Draw(t, "order") {
			if len(u.Policies) > 0 && u.Policies[0].Scope != model.ScopeSelector {
				wide--
			}
			u.PoliciesComplete = wide == 0
			s = s.Apply(u)
			for request, d := range c.outcomes(s) {
				if d.Allowed && !will[request].Allowed {
					t.Fatalf("after %+v: %s: %v; in the end %v", u, request, d, will[request])
				}
			}
		}
	})
}

// What is sent to proxies that know of no extensions never allows what the
// policies themselves deny.
func TestPoliciesWithoutExtensionsAllowNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster()
		for range rapid.IntRange(1, 10).Draw(t, "changes") {
			c.change(t)
		}
		whole := c.build()
		want := c.outcomes(model.NewSnapshot().Apply(whole.Since(nil)))
		for i, p := range whole.Policies {
			whole.Policies[i] = throughTheWire(t, wire.For(p, wire.DialectPlain))
		}
		for request, d := range c.outcomes(model.NewSnapshot().Apply(whole.Since(nil))) {
			if d.Allowed && !want[request].Allowed {
				t.Fatalf("%s: %v without extensions; %v with them", request, d, want[request])
			}
		}
	})
}

// throughTheWire is what such a proxy makes of a policy.
func throughTheWire(t *rapid.T, p *model.Policy) *model.Policy {
	if lacks := wire.Lacks(p, ""); len(lacks) > 0 {
		t.Fatalf("%+v still needs %v", p, lacks)
	}
	resource, err := wire.EncodePolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	out, err := wire.DecodePolicy(p.Key(), resource)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
