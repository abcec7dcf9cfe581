package build

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	securityv1beta1 "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/xds/kinds"
	"github.com/tacit-mesh/tacit/xds/model"
)

// draws makes objects of few names and values, so that they meet.
type draws struct {
	t   *rapid.T
	uid int
}

func (d *draws) one(of ...string) string { return rapid.SampledFrom(of).Draw(d.t, "value") }
func (d *draws) flip() bool              { return rapid.Bool().Draw(d.t, "flip") }
func (d *draws) rarely() bool            { return rapid.IntRange(0, 5).Draw(d.t, "rarely") == 0 }
func (d *draws) namespace() string       { return d.one("a", "b", "root") }
func (d *draws) address() string         { return d.one("198.18.0.1", "198.18.0.2", "198.18.0.3", "fd00::1") }
func (d *draws) labels() map[string]string {
	return map[string]string{"app": d.one("x", "y"), d.one("version", "tier"): d.one("1", "2")}
}

func (d *draws) meta(names ...string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: d.namespace(), Name: d.one(names...)}
}

func (d *draws) object() metav1.Object {
	switch rapid.IntRange(0, 13).Draw(d.t, "kind") {
	case 0:
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: d.namespace(), Labels: map[string]string{dataplaneLabel: d.one(enabled, disabled, "what")},
			Annotations: map[string]string{"tacit.mesh/skip-inbound-ports": d.one("80", "81", "oops")},
		}}
	case 1:
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: d.one("n1", "n2"), Labels: map[string]string{corev1.LabelTopologyZone: d.one("z1", "z2")}}}
	case 2:
		return &corev1.ServiceAccount{ObjectMeta: d.meta("default", "web")}
	case 3, 4:
		return d.pod()
	case 5:
		return d.service()
	case 6, 7:
		return d.slice()
	case 8:
		return d.authorization()
	case 9:
		p := &securityv1.RequestAuthentication{ObjectMeta: d.meta("r1", "r2")}
		p.Spec.Selector, p.Spec.TargetRefs = d.selector(), d.targets()
		p.Spec.JwtRules = []*securityv1beta1.JWTRule{{Issuer: d.one("i", "j"), JwksUri: "https://keys.test/" + d.one("i", "j")}}
		return p
	case 10:
		p := &kinds.RateLimit{ObjectMeta: d.meta("l1", "l2")}
		p.Spec.Limits = []kinds.Limit{{Connections: 1, Interval: metav1.Duration{Duration: time.Second}}}
		if s := d.selector(); s != nil {
			p.Spec.Selector = &metav1.LabelSelector{MatchLabels: s.MatchLabels}
		} else if refs := d.targets(); len(refs) > 0 {
			p.Spec.TargetRef = &kinds.TargetRef{Group: refs[0].Group, Kind: refs[0].Kind, Name: refs[0].Name}
		}
		return p
	case 12:
		b := &bypass.Bypass{ObjectMeta: d.meta("x1", "x2")}
		begin := int64(rapid.IntRange(1, 20).Draw(d.t, "begin"))
		since, until := metav1.Unix(begin, 0), metav1.Unix(begin+int64(rapid.IntRange(0, 10).Draw(d.t, "for")), 0)
		b.Spec = bypass.Spec{Pod: d.one("", "p1", "p2"), PolicyOnly: d.flip(), Reason: d.one("why", ""), Since: &since, Until: &until}
		return b
	case 11:
		p := &kinds.RevokedIdentity{ObjectMeta: d.meta("v1", "v2")}
		p.Spec.Identity = "spiffe://" + d.one("cluster.local", "other") + "/ns/" + d.namespace() + "/sa/" + d.one("default", "web")
		if d.flip() {
			p.Spec.Until = &metav1.Time{Time: time.Unix(int64(rapid.IntRange(1, 30).Draw(d.t, "until")), 0)}
		}
		return p
	}
	p := &securityv1.PeerAuthentication{ObjectMeta: d.meta("q1", "q2")}
	p.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(0, 2).Draw(d.t, "age")), 0)
	p.Spec.Mtls = &securityv1beta1.PeerAuthentication_MutualTLS{Mode: securityv1beta1.PeerAuthentication_MutualTLS_Mode(rapid.IntRange(0, 3).Draw(d.t, "mode"))}
	if p.Spec.Selector = d.selector(); p.Spec.Selector != nil && d.flip() {
		p.Spec.PortLevelMtls = map[uint32]*securityv1beta1.PeerAuthentication_MutualTLS{80: {Mode: securityv1beta1.PeerAuthentication_MutualTLS_DISABLE}}
	}
	return p
}

func (d *draws) selector() *typev1beta1.WorkloadSelector {
	if d.flip() {
		return nil
	}
	return &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{d.one("app", "version", "tier"): d.one("x", "1")}}
}

// targets are mostly none.
func (d *draws) targets() []*typev1beta1.PolicyTargetReference {
	if !d.rarely() {
		return nil
	}
	return []*typev1beta1.PolicyTargetReference{rapid.SampledFrom([]*typev1beta1.PolicyTargetReference{
		{Kind: "Service", Name: "s1"}, {Kind: "Service", Name: "s2"}, {Kind: "Pod", Name: "p1"}, {Group: "apps", Kind: "ReplicaSet", Name: "set"},
	}).Draw(d.t, "target")}
}

func (d *draws) authorization() metav1.Object {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: d.meta("p1", "p2", "p3")}
	p.Spec.Action = securityv1beta1.AuthorizationPolicy_Action(d.uid % 2)
	p.Spec.Selector, p.Spec.TargetRefs = d.selector(), d.targets()
	rule := &securityv1beta1.Rule{From: []*securityv1beta1.Rule_From{{Source: &securityv1beta1.Source{Namespaces: []string{d.namespace()}}}}}
	if d.rarely() {
		rule.When = []*securityv1beta1.Condition{{Key: d.one("source.labels[app]", "source.labels[tier]", "what"), Values: []string{"x"}}}
	}
	p.Spec.Rules = append(p.Spec.Rules, rule)
	return p
}

func (d *draws) pod() metav1.Object {
	d.uid++
	p := &corev1.Pod{ObjectMeta: d.meta("p1", "p2", "p3", "p4")}
	p.UID = types.UID(fmt.Sprint(d.uid))
	p.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(0, 2).Draw(d.t, "age")), 0)
	p.Labels = d.labels()
	if d.rarely() {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "set", Controller: new(true)}}
	}
	if d.flip() {
		p.Annotations = map[string]string{redirectionAnnotation: enabled}
	}
	if d.rarely() {
		p.Labels[dataplaneLabel] = d.one(enabled, disabled)
	}
	p.Spec = corev1.PodSpec{NodeName: d.one("", "n1", "n2"), ServiceAccountName: d.one("", "web"), HostNetwork: d.rarely()}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(rapid.IntRange(8080, 8081).Draw(d.t, "number"))}}}}
	if d.rarely() {
		p.Status.Phase = corev1.PodSucceeded
	}
	if d.rarely() {
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	}
	if !d.rarely() {
		p.Status.PodIPs = []corev1.PodIP{{IP: d.address()}, {IP: d.one("fd00::1", "fd00::2", "not an address")}}
	}
	return p
}

func (d *draws) service() metav1.Object {
	s := &corev1.Service{ObjectMeta: d.meta("s1", "s2")}
	s.Spec = corev1.ServiceSpec{ClusterIP: d.one("198.18.9.1", "None"), Ports: []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromString("http")}}}
	if !d.rarely() {
		s.Spec.Selector = map[string]string{"app": d.one("x", "y")}
	}
	if d.rarely() {
		s.Spec.Type = corev1.ServiceTypeExternalName
	}
	if d.rarely() {
		s.Spec.Ports[0].Port = 0
	}
	return s
}

func (d *draws) slice() metav1.Object {
	s := &discoveryv1.EndpointSlice{ObjectMeta: d.meta("e1", "e2", "e3"), AddressType: discoveryv1.AddressTypeIPv4}
	if !d.rarely() {
		s.Labels = map[string]string{discoveryv1.LabelServiceName: d.one("s1", "s2")}
	}
	port, name, node := int32(rapid.IntRange(80, 81).Draw(d.t, "port")), "web", d.one("n1", "n2")
	s.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
	for range rapid.IntRange(0, 3).Draw(d.t, "endpoints") {
		ready, terminating := !d.rarely(), d.rarely()
		e := discoveryv1.Endpoint{Addresses: []string{d.address()}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Terminating: &terminating}}
		if d.flip() {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: d.one("p1", "p2", "p3", "p4"), Namespace: d.one("", "a", "b")}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

var sameResult = cmp.Options{ignoreOrder, cmp.Comparer(func(a, b error) bool { return a.Error() == b.Error() })}

// After any history the mesh is what a build of the objects from nothing makes
// of them, and whoever followed the updates has it.
func TestChangesLeadToWhatABuildFromNothingDoes(t *testing.T) {
	settings := Settings{RootNamespace: "root", Accounts: true, Skips: model.SkipSettings{Mode: model.SkipsAny}}
	rapid.Check(t, func(t *rapid.T) {
		d := &draws{t: t}
		mesh, snapshot := New(settings), model.NewSnapshot()
		there := map[objectKey]metav1.Object{}
		for round := range rapid.IntRange(1, 30).Draw(t, "rounds") {
			now := time.Unix(int64(round), 0)
			snapshot = snapshot.Apply(mesh.Advance(now))
			var c Changes
			in := map[objectKey]bool{}
			for range rapid.IntRange(1, 6).Draw(t, "changes") {
				o := d.object()
				key := keyOf(o)
				if in[key] {
					continue
				}
				if in[key] = true; d.rarely() {
					c.Gone = append(c.Gone, o)
					delete(there, key)
				} else {
					c.Set = append(c.Set, o)
					there[key] = o
				}
			}
			snapshot = snapshot.Apply(mesh.Apply(c))
			if d.flip() {
				mesh.Statuses() // which are remembered
			}
			whole := New(settings)
			whole.Advance(now)
			whole.Apply(Changes{Set: slices.Collect(maps.Values(there))})
			want, got := whole.Result(), mesh.Result()
			if diff := cmp.Diff(want, got, sameResult...); diff != "" {
				t.Fatalf("after %v\n%s", c, diff)
			}
			if mesh.Counts() != (Counts{len(want.Workloads), len(want.Services), len(want.Policies)}) {
				t.Fatalf("counts %+v of %d workloads, %d services, %d policies", mesh.Counts(), len(want.Workloads), len(want.Services), len(want.Policies))
			}
			if diff := cmp.Diff(want.Workloads, snapshot.Workloads(), ignoreOrder, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("who followed has other workloads: %s", diff)
			}
			checkAttached(t, mesh, there, now)
			checkEnd(t, mesh, there, now)
		}
	})
}

// checkAttached compares what was remembered of policies with what their
// translation says of all objects and workloads at once.
func checkAttached(t *rapid.T, m *Mesh, there map[objectKey]metav1.Object, now time.Time) {
	in := PolicyInput{RootNamespace: "root", Now: now}
	for _, o := range there {
		if in.add(o); kindOf(o) == "Service" {
			in.Services = append(in.Services, o.(*corev1.Service))
		}
	}
	for _, e := range m.pods {
		if w := e.workload; w != nil {
			in.Workloads = append(in.Workloads, policyTarget(e.pod, w))
		}
	}
	want := Policies(in)
	for _, e := range m.pods {
		if w := e.workload; w != nil && (!slices.Equal(w.Policies, want.Attached[w.UID]) || !maps.Equal(w.Labels, want.Labels(e.pod.Labels))) {
			t.Fatalf("%s has policies %v and labels %v, want %v and %v", w.UID, w.Policies, w.Labels, want.Attached[w.UID], want.Labels(e.pod.Labels))
		}
	}
}

// The ports of a policy that targets a Service follow what pods call them.
func TestPortsByName(t *testing.T) {
	m := New(Settings{})
	pod := func(name string, port int32) *corev1.Pod {
		p := clusterPod("n0", 0, 0, netip.MustParseAddr("198.18.0.1"))
		p.Name = name
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: port}, {ContainerPort: 9}}}}
		return p
	}
	svc := clusterService("n0", 0)
	svc.Spec.Ports[0].TargetPort = intstr.FromString("web")
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "p"}}
	p.Spec.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: "Service", Name: "s0"}}
	for _, step := range []struct {
		what  string
		apply Changes
		want  string
	}{
		{"no pod", Changes{Set: []metav1.Object{svc, p}}, "[]"},
		{"a pod comes", Changes{Set: []metav1.Object{pod("a", 8080)}}, "[8080]"},
		{"another one of other numbers", Changes{Set: []metav1.Object{pod("b", 9090)}}, "[8080 9090]"},
		{"a third", Changes{Set: []metav1.Object{pod("c", 9090)}}, "[8080 9090]"},
		{"the first changes", Changes{Set: []metav1.Object{pod("a", 8081)}}, "[8081 9090]"},
		{"the second goes", Changes{Gone: []metav1.Object{pod("b", 9090)}}, "[8081 9090]"},
		{"the third goes, too", Changes{Gone: []metav1.Object{pod("c", 9090)}}, "[8081]"},
	} {
		m.Apply(step.apply)
		if got := fmt.Sprint(m.Policies()[0].Ports); got != step.want {
			t.Errorf("%s: ports %s, want %s", step.what, got, step.want)
		}
	}
}

// checkEnd: nothing that ends by itself is forgotten.
func checkEnd(t *rapid.T, m *Mesh, there map[objectKey]metav1.Object, now time.Time) {
	var want time.Time
	for _, o := range there {
		r, ok := o.(*kinds.RevokedIdentity)
		if ok && r.Spec.Until != nil && r.Spec.Until.After(now) && (want.IsZero() || r.Spec.Until.Time.Before(want)) {
			want = r.Spec.Until.Time
		}
		b, ok := o.(*bypass.Bypass)
		for at := now.Add(time.Second); ok && at.Before(now.Add(time.Minute)); at = at.Add(time.Second) {
			if b.Phase(at, bypass.DefaultMax) != b.Phase(now, bypass.DefaultMax) && (want.IsZero() || at.Before(want)) {
				want = at
			}
		}
	}
	if got := m.NextEnd(); !got.Equal(want) {
		t.Fatalf("at %v the next end is %v, want %v", now, got, want)
	}
}

// cluster is one of 10,000 pods in 100 namespaces, with services and policies.
func cluster() (o Objects) {
	for n := range 100 {
		ns := fmt.Sprint("n", n)
		o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{dataplaneLabel: enabled}}})
		o.ServiceAccounts = append(o.ServiceAccounts, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "default"}})
		for app := range 10 {
			o.Services = append(o.Services, clusterService(ns, app))
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("s", app, "-1"), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", app)}},
				AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
			}
			for i := range 10 {
				pod := clusterPod(ns, app, i, netip.AddrFrom4([4]byte{198, 18, byte(n), byte(app*10 + i)}))
				o.Pods = append(o.Pods, pod)
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
					Addresses: []string{pod.Status.PodIP}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pod.Name},
				})
			}
			o.EndpointSlices = append(o.EndpointSlices, slice)
		}
		for p := range 5 {
			o.AuthorizationPolicies = append(o.AuthorizationPolicies, clusterPolicy(ns, p, "frontend"))
		}
	}
	for i := range 100 {
		o.Nodes = append(o.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node", i)}})
	}
	return o
}

func clusterService(ns string, app int) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", app), Namespace: ns},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": fmt.Sprint("a", app)}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func clusterPod(ns string, app, i int, ip netip.Addr) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprint("a", app, "-", i), Namespace: ns, UID: types.UID(ip.String()),
			Labels:      map[string]string{"app": fmt.Sprint("a", app), "pod-template-hash": fmt.Sprint("h", app)},
			Annotations: map[string]string{redirectionAnnotation: enabled},
		},
		Spec:   corev1.PodSpec{NodeName: fmt.Sprint("node", i)},
		Status: corev1.PodStatus{PodIP: ip.String(), Phase: corev1.PodRunning},
	}
}

func clusterPolicy(ns string, p int, caller string) *securityv1.AuthorizationPolicy {
	out := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("p", p)}}
	out.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", p)}}
	out.Spec.Rules = []*securityv1beta1.Rule{{
		From: []*securityv1beta1.Rule_From{{Source: &securityv1beta1.Source{Principals: []string{"cluster.local/ns/" + ns + "/sa/" + caller}}}},
		To:   []*securityv1beta1.Rule_To{{Operation: &securityv1beta1.Operation{Ports: []string{"8080"}}}},
	}}
	return out
}

// BenchmarkChange is one change in a cluster of 10,000 pods, 1,000 services and
// 500 policies, each time there and back.
func BenchmarkChange(b *testing.B) {
	o := cluster()
	moved := o.Pods[5000].DeepCopy()
	moved.Status.PodIP = "198.19.0.1"
	left := o.EndpointSlices[500].DeepCopy()
	left.Endpoints[3].Conditions.Ready = new(false)
	out := o.Namespaces[50].DeepCopy()
	out.Labels[dataplaneLabel] = disabled
	for _, change := range []struct {
		name      string
		to, from  metav1.Object
		workloads int // that it changes
	}{
		{"pod", moved, o.Pods[5000], 1},
		{"endpoint", left, o.EndpointSlices[500], 1},
		{"service", clusterService("n50", 3), &corev1.Service{ObjectMeta: o.Services[503].ObjectMeta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 81}}}}, 10},
		{"policy", clusterPolicy("n50", 0, "other"), o.AuthorizationPolicies[250], 0},
		{"policy selects others", clusterPolicy("n50", 7, "other"), &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "n50", Name: "p7"}}, 10},
		{"namespace label", out, o.Namespaces[50], 100},
	} {
		b.Run(change.name, func(b *testing.B) {
			m := New(Settings{Accounts: true})
			m.Apply(o.Since(nil))
			m.Apply(Changes{Set: []metav1.Object{change.from}})
			next, other := change.to, change.from
			for b.Loop() {
				u := m.Apply(Changes{Set: []metav1.Object{next}})
				if len(u.Workloads) != change.workloads {
					b.Fatalf("%d workloads changed, want %d", len(u.Workloads), change.workloads)
				}
				next, other = other, next
			}
		})
	}
	b.Run("everything", func(b *testing.B) {
		for b.Loop() {
			New(Settings{Accounts: true}).Apply(o.Since(nil))
		}
	})
	b.Run("statuses", func(b *testing.B) {
		m := New(Settings{Accounts: true})
		m.Apply(o.Since(nil))
		for b.Loop() {
			m.statuses = nil
			m.Statuses()
		}
	})
}

// A change costs what depends on it, not what there is: seen by allocations,
// of which a build from nothing makes hundreds of thousands.
func TestChangeOfAPodIsCheap(t *testing.T) {
	o := cluster()
	m := New(Settings{Accounts: true})
	m.Apply(o.Since(nil))
	next, other := o.Pods[5000], o.Pods[5000].DeepCopy()
	other.Status.PodIP = "198.19.0.1"
	allocations := testing.AllocsPerRun(100, func() {
		next, other = other, next
		if u := m.Apply(Changes{Set: []metav1.Object{next}}); len(u.Workloads) != 1 {
			t.Fatalf("%d workloads changed", len(u.Workloads))
		}
	})
	if allocations > 100 {
		t.Errorf("%v allocations", allocations)
	}
}
