package build

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/xds/model"
)

// objects reads documents the way a cluster would hold them.
func objects(t testing.TB, documents string) (o Objects) {
	t.Helper()
	for _, text := range strings.Split(documents, "\n---\n") {
		var meta metav1.TypeMeta
		read := func(into any) {
			if err := yaml.Unmarshal([]byte(text), into); err != nil {
				t.Fatal(err)
			}
		}
		read(&meta)
		switch meta.Kind {
		case "Namespace":
			o.Namespaces = append(o.Namespaces, new(corev1.Namespace))
			read(o.Namespaces[len(o.Namespaces)-1])
		case "Node":
			o.Nodes = append(o.Nodes, new(corev1.Node))
			read(o.Nodes[len(o.Nodes)-1])
		case "Pod":
			o.Pods = append(o.Pods, new(corev1.Pod))
			read(o.Pods[len(o.Pods)-1])
		case "Service":
			o.Services = append(o.Services, new(corev1.Service))
			read(o.Services[len(o.Services)-1])
		case "EndpointSlice":
			o.EndpointSlices = append(o.EndpointSlices, new(discoveryv1.EndpointSlice))
			read(o.EndpointSlices[len(o.EndpointSlices)-1])
		case "PeerAuthentication":
			o.PeerAuthentications = append(o.PeerAuthentications, new(securityv1.PeerAuthentication))
			read(o.PeerAuthentications[len(o.PeerAuthentications)-1])
		default:
			t.Fatalf("kind %q", meta.Kind)
		}
	}
	return o
}

var ignoreOrder = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func problems(r Result) []string {
	var out []string
	for _, p := range r.Problems {
		out = append(out, p.Error())
	}
	return out
}

const world = `
kind: Namespace
metadata: {name: shop, labels: {tacit.mesh/dataplane: enabled}, annotations: {tacit.mesh/skip-outbound-ports: "25"}}
---
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}
`

// withPod builds the world above with one pod; text is all of it but kind and name.
func withPod(t *testing.T, text string) (*model.Workload, Result) {
	t.Helper()
	r := Build(Settings{Skips: model.SkipSettings{Mode: model.SkipsAny}}, objects(t, world+"---\nkind: Pod\n"+text))
	if len(r.Workloads) == 0 {
		return nil, r
	}
	return r.Workloads[0], r
}

func TestPodInFull(t *testing.T) {
	got, r := withPod(t, `
metadata:
  name: web-5d8-x
  namespace: shop
  uid: u-1
  labels: {app: web, version: v2, pod-template-hash: 5d8}
  annotations: {tacit.mesh/redirection: enabled, tacit.mesh/skip-inbound-ports: "5432,9000-9100", tacit.mesh/skip-outbound-cidrs: 198.18.8.0/24}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d8, uid: r, controller: true}]
spec: {nodeName: n1, serviceAccountName: web}
status: {podIPs: [{ip: 198.18.1.1}, {ip: "fd00:7ac1::1"}], conditions: [{type: Ready, status: "True"}]}
`)
	want := &model.Workload{
		UID: "Kubernetes//Pod/shop/web-5d8-x", PodUID: "u-1", Name: "web-5d8-x", Namespace: "shop",
		ServiceAccount: "web", TrustDomain: "cluster.local", ClusterID: "Kubernetes", Node: "n1",
		Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("fd00:7ac1::1")},
		Locality:  model.Locality{Region: "r", Zone: "z", Subzone: "s"},
		Protocol:  model.ProtocolHBONE, Capacity: 1,
		CanonicalName: "web", CanonicalRevision: "v2", WorkloadName: "web", WorkloadType: model.TypeDeployment,
		SkipInbound:       model.PortSet{{First: 5432, Last: 5432}, {First: 9000, Last: 9100}},
		SkipOutbound:      model.PortSet{{First: 25, Last: 25}},
		SkipOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.8.0/24")},
		SkippedBy: &model.SkippedBy{
			Inbound:       "pod annotation tacit.mesh/skip-inbound-ports",
			Outbound:      "namespace annotation tacit.mesh/skip-outbound-ports",
			OutboundCIDRs: "pod annotation tacit.mesh/skip-outbound-cidrs",
		},
	}
	if diff := cmp.Diff(want, got, ignoreOrder); diff != "" {
		t.Error(diff)
	}
	if len(r.Problems) > 0 || !r.Identities["n1"][got.Identity()] || len(r.Identities) != 1 {
		t.Errorf("problems %v, identities %v", r.Problems, r.Identities)
	}
}

func TestPodStates(t *testing.T) {
	const ip = "status: {podIPs: [{ip: 198.18.1.1}]}\n"
	reported := "metadata: {name: p, namespace: shop, annotations: {tacit.mesh/redirection: enabled}"
	for _, test := range []struct {
		name, text string
		want       string // what is set of: hbone, unhealthy, terminating, host, identity; "-" if it is no workload
	}{
		{"enrolled, not captured yet", "metadata: {name: p, namespace: shop}\nspec: {nodeName: n1}\n" + ip, "identity"},
		{"captured", reported + "}\nspec: {nodeName: n1}\n" + ip, "hbone identity"},
		{"captured, label on the pod", strings.Replace(reported, "shop", "other, labels: {tacit.mesh/dataplane: enabled}", 1) + "}\nspec: {nodeName: n1}\n" + ip, "hbone identity"},
		{"reported, opted out", reported + ", labels: {tacit.mesh/dataplane: disabled}}\nspec: {nodeName: n1}\n" + ip, ""},
		{"reported, never opted in", strings.Replace(reported, "shop", "other", 1) + "}\nspec: {nodeName: n1}\n" + ip, ""},
		{"reported as pending", "metadata: {name: p, namespace: shop, annotations: {tacit.mesh/redirection: pending}}\nspec: {nodeName: n1}\n" + ip, "identity"},
		{"on the host's network", reported + "}\nspec: {nodeName: n1, hostNetwork: true}\n" + ip, "host"},
		{"not scheduled", reported + "}\n" + ip, "hbone"},
		{"no address yet", reported + "}\nspec: {nodeName: n1}\n", "- identity"},
		{"old form of address", reported + "}\nspec: {nodeName: n1}\nstatus: {podIP: 198.18.1.1}\n", "hbone identity"},
		{"succeeded", reported + "}\nspec: {nodeName: n1}\nstatus: {phase: Succeeded, podIPs: [{ip: 198.18.1.1}]}\n", "-"},
		{"failed", reported + "}\nspec: {nodeName: n1}\nstatus: {phase: Failed, podIPs: [{ip: 198.18.1.1}]}\n", "-"},
		{"pending", reported + "}\nspec: {nodeName: n1}\nstatus: {phase: Pending, podIPs: [{ip: 198.18.1.1}]}\n", "hbone unhealthy identity"},
		{"running", reported + "}\nspec: {nodeName: n1}\nstatus: {phase: Running, podIPs: [{ip: 198.18.1.1}]}\n", "hbone identity"},
		{"not ready", reported + "}\nspec: {nodeName: n1}\nstatus: {conditions: [{type: Ready, status: 'False'}], podIPs: [{ip: 198.18.1.1}]}\n", "hbone unhealthy identity"},
		{"ready not known", reported + "}\nspec: {nodeName: n1}\nstatus: {conditions: [{type: Ready, status: Unknown}], podIPs: [{ip: 198.18.1.1}]}\n", "hbone unhealthy identity"},
		{"going", reported + ", deletionTimestamp: '2026-01-01T00:00:00Z'}\nspec: {nodeName: n1}\n" + ip, "hbone terminating identity"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, r := withPod(t, test.text)
			var got []string
			add := func(is bool, word string) {
				if is {
					got = append(got, word)
				}
			}
			if w == nil {
				got, w = append(got, "-"), &model.Workload{}
			}
			add(w.Protocol == model.ProtocolHBONE, "hbone")
			add(w.Unhealthy, "unhealthy")
			add(w.Terminating, "terminating")
			add(w.HostNetwork, "host")
			add(len(r.Identities["n1"]) > 0, "identity")
			if strings.Join(got, " ") != test.want || len(r.Problems) > 0 {
				t.Errorf("got %q, want %q; problems %v", got, test.want, r.Problems)
			}
		})
	}
}

func TestControllers(t *testing.T) {
	for _, test := range []struct {
		owner, labels string
		name          string
		kind          model.WorkloadType
	}{
		{"", "", "p", model.TypePod},
		{"kind: ReplicaSet, name: web-abc", "pod-template-hash: abc", "web", model.TypeDeployment},
		{"kind: ReplicaSet, name: web-abc", "", "web-abc", model.TypePod},
		{"kind: Job, name: backup", "", "backup", model.TypeJob},
		{"kind: Job, name: backup-29012345", "", "backup", model.TypeCronJob},
		{"kind: StatefulSet, name: db", "", "db", model.TypePod},
	} {
		owner := ""
		if test.owner != "" {
			owner = ", ownerReferences: [{controller: true, " + test.owner + "}]"
		}
		w, _ := withPod(t, "metadata: {name: p, namespace: shop, labels: {"+test.labels+"}"+owner+"}\nstatus: {podIP: 198.18.1.1}\n")
		if w.WorkloadName != test.name || w.WorkloadType != test.kind || w.CanonicalName != test.name || w.CanonicalRevision != "latest" {
			t.Errorf("%s: %q of type %d, canonical %q %q", test.owner, w.WorkloadName, w.WorkloadType, w.CanonicalName, w.CanonicalRevision)
		}
	}
}

func TestServices(t *testing.T) {
	address := func(s string) model.NetworkAddress {
		return model.NetworkAddress{Prefix: netip.MustParsePrefix(s)}
	}
	base := model.Service{Name: "s", Namespace: "ns", Hostname: "s.ns.svc.cluster.local", Canonical: true}
	with := func(change func(*model.Service)) *model.Service { s := base; change(&s); return &s }
	zone := []model.Scope{model.ScopeNetwork, model.ScopeRegion, model.ScopeZone}
	for _, test := range []struct {
		name, spec string
		want       *model.Service
		problem    string
	}{
		{"dual stack", `clusterIP: 198.18.9.1, clusterIPs: [198.18.9.1, "fd00:7ac1::9"]`,
			with(func(s *model.Service) {
				s.Addresses = []model.NetworkAddress{address("198.18.9.1/32"), address("fd00:7ac1::9/128")}
			}), ""},
		{"old form", `clusterIP: 198.18.9.1`, with(func(s *model.Service) { s.Addresses = []model.NetworkAddress{address("198.18.9.1/32")} }), ""},
		{"headless", `clusterIP: None, clusterIPs: [None]`, &base, ""},
		{"another name for something", `type: ExternalName, externalName: a.example`, nil, ""},
		{"bad address", `clusterIPs: [198.18.9]`, &base, `Service ns/s: spec.clusterIPs: "198.18.9" is not an address`},
		{"ports", `ports: [{port: 80}, {name: b, port: 81, targetPort: 8081}, {name: http-c, port: 82, targetPort: http}, {name: u, port: 53, protocol: UDP}, {name: g, port: 83, appProtocol: kubernetes.io/h2c}]`,
			with(func(s *model.Service) {
				s.Ports = []model.Port{{Service: 80, Target: 80}, {Service: 81, Target: 8081}, {Service: 82, AppProtocol: model.AppHTTP11}, {Service: 83, Target: 83, AppProtocol: model.AppHTTP2}}
			}), ""},
		{"bad port", `ports: [{name: a, port: 65536}, {name: b, port: 80, targetPort: 70000}]`, &base, "Service ns/s: spec.ports[a].port: 65536 is not a port (1-65535)|Service ns/s: spec.ports[b].targetPort: 70000 is not a port (1-65535)"},
		{"node only", `internalTrafficPolicy: Local, trafficDistribution: PreferClose`,
			with(func(s *model.Service) { s.Balance, s.Prefer = model.BalanceStrict, []model.Scope{model.ScopeNode} }), ""},
		{"close", `internalTrafficPolicy: Cluster, trafficDistribution: PreferClose`,
			with(func(s *model.Service) {
				s.Balance, s.Prefer = model.BalanceFailover, append(zone[:3:3], model.ScopeSubzone)
			}), ""},
		{"same zone", `trafficDistribution: PreferSameZone`, with(func(s *model.Service) { s.Balance, s.Prefer = model.BalanceFailover, zone }), ""},
		{"same node", `trafficDistribution: PreferSameNode`,
			with(func(s *model.Service) {
				s.Balance, s.Prefer = model.BalanceFailover, append(zone[:3:3], model.ScopeSubzone, model.ScopeNode)
			}), ""},
		{"unknown distribution", `trafficDistribution: PreferFar`, &base, `Service ns/s: spec.trafficDistribution: "PreferFar" is not known: taken for none`},
		{"not ready ones too", `publishNotReadyAddresses: true`, with(func(s *model.Service) { s.Unhealthy = true }), ""},
		{"affinity", `sessionAffinity: ClientIP`, with(func(s *model.Service) { s.Affinity = 3 * time.Hour }), ""},
		{"affinity for a time", `sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}`, with(func(s *model.Service) { s.Affinity = time.Minute }), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Build(Settings{}, objects(t, "kind: Service\nmetadata: {name: s, namespace: ns}\nspec: {"+test.spec+"}"))
			var got *model.Service
			if len(r.Services) > 0 {
				got = r.Services[0]
			}
			if diff := cmp.Diff(test.want, got, ignoreOrder); diff != "" {
				t.Error(diff)
			}
			if got := strings.Join(problems(r), "|"); got != test.problem {
				t.Errorf("problems %q, want %q", got, test.problem)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"bad skip list", "metadata: {name: p, namespace: shop, annotations: {tacit.mesh/skip-inbound-ports: all}}\nstatus: {podIP: 198.18.1.1}", "Pod shop/p: pod annotation tacit.mesh/skip-inbound-ports: port list"},
		{"bad address", "metadata: {name: p, namespace: shop}\nstatus: {podIPs: [{ip: 198.18.1.1}, {ip: 'fe80::1%eth0'}]}", `Pod shop/p: status.podIPs: "fe80::1%eth0" is not an address`},
		{"bad label", "metadata: {name: p, namespace: shop, labels: {tacit.mesh/dataplane: on!}}\nstatus: {podIP: 198.18.1.1}", `Pod shop/p: label tacit.mesh/dataplane: "on!" is neither`},
		{"slice without a service", "metadata: {name: p, namespace: shop}\n---\nkind: EndpointSlice\nmetadata: {name: e, namespace: shop}", "EndpointSlice shop/e: no label kubernetes.io/service-name"},
	} {
		_, r := withPod(t, test.text)
		if got := problems(r); len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestPoliciesAreJoined(t *testing.T) {
	w, r := withPod(t, "metadata: {name: p, namespace: shop}\nstatus: {podIP: 198.18.1.1}\n---\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}")
	if len(w.Policies) != 1 || len(r.Policies) != 1 || w.Policies[0] != r.Policies[0].Key() {
		t.Errorf("workload's %q, policies %v", w.Policies, r.Policies)
	}
	if len(r.Statuses) != 1 || len(r.Statuses[0].Messages) != 1 || !strings.Contains(r.Statuses[0].Messages[0], "not captured") {
		t.Errorf("statuses %+v", r.Statuses)
	}
}

// The order of the objects makes no difference.
func TestDeterministic(t *testing.T) {
	text := strings.TrimPrefix(threePods, "\n") + "kind: Service\nmetadata: {name: s, namespace: ns}\nspec: {selector: {app: x}, ports: [{port: 80}]}\n---\n" +
		"kind: Service\nmetadata: {name: t, namespace: ns}\nspec: {selector: {app: x}, ports: [{port: 80}, {name: b, port: 81}]}"
	want := Build(Settings{}, objects(t, text))
	for range 20 {
		o := objects(t, text)
		rand.Shuffle(len(o.Pods), func(i, j int) { o.Pods[i], o.Pods[j] = o.Pods[j], o.Pods[i] })
		rand.Shuffle(len(o.Services), func(i, j int) { o.Services[i], o.Services[j] = o.Services[j], o.Services[i] })
		if diff := cmp.Diff(want, Build(Settings{}, o), ignoreOrder); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestSince(t *testing.T) {
	before := Build(Settings{}, objects(t, strings.TrimPrefix(threePods, "\n")+"kind: Service\nmetadata: {name: s, namespace: ns}"))
	after := Build(Settings{}, objects(t, strings.ReplaceAll(strings.TrimPrefix(threePods, "\n"), "name: b,", "name: bb,")+"kind: Service\nmetadata: {name: s, namespace: ns}\nspec: {clusterIP: 198.18.9.1}"))
	u := after.Since(&before)
	if len(u.Workloads) != 1 || u.Workloads[0].Name != "bb" || len(u.Services) != 1 || len(u.RemovedAddresses) != 1 || u.RemovedAddresses[0] != "Kubernetes//Pod/ns/b" {
		t.Errorf("update %+v", u)
	}
	same := after.Since(&after)
	if n := len(same.Workloads) + len(same.Services) + len(same.Policies) + len(same.RemovedAddresses) + len(same.RemovedPolicies); n > 0 {
		t.Errorf("%d changes from a result to itself", n)
	}
	snapshot := model.NewSnapshot().Apply(before.Since(nil)).Apply(u)
	if diff := cmp.Diff(after.Workloads, snapshot.Workloads(), ignoreOrder); diff != "" {
		t.Error(diff)
	}
}
