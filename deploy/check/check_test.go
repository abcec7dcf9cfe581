package check

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	authorization "k8s.io/api/authorization/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/version"
	discoveryfake "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/deploy/facts"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// world is a cluster as a test makes it: two nodes, Tacit on both, and one
// namespace that is opted in with a captured pod. All is fine in it.
type world struct {
	kubernetes string
	allowed    bool
	objects    []runtime.Object
	custom     []runtime.Object
	facts      map[string]*facts.Node         // by node
	held       map[string][]admin.Certificate // by node
	roots      string
}

func newWorld() *world {
	w := &world{kubernetes: "v1.34.4", allowed: true, facts: map[string]*facts.Node{}, held: map[string][]admin.Certificate{}}
	w.add(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "shop", Labels: map[string]string{"tacit.mesh/dataplane": "enabled"}}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "plain"}},
		pod("shop", "web", "node-a", map[string]string{"app": "web"}, map[string]string{"tacit.mesh/redirection": "enabled"}),
		pod("plain", "other", "node-a", nil, nil))
	for _, node := range []string{"node-a", "node-b"} {
		w.add(&core.Node{ObjectMeta: meta.ObjectMeta{Name: node, Labels: map[string]string{"kubernetes.io/os": "linux"}}, Status: core.NodeStatus{
			NodeInfo:   core.NodeSystemInfo{KernelVersion: "6.1.0-20-cloud", ContainerRuntimeVersion: "containerd://2.1.0", KubeletVersion: "v1.34.4"},
			Conditions: []core.NodeCondition{{Type: core.NodeReady, Status: core.ConditionTrue}},
		}})
		for _, name := range []string{cluster.Agent, cluster.Proxy} {
			p := pod("tacit-system", name+"-"+node, node, map[string]string{"app.kubernetes.io/name": name}, nil)
			if name == cluster.Agent {
				p.Spec.Containers[0].VolumeMounts = []core.VolumeMount{{MountPath: confDir}}
			}
			w.add(p)
		}
		w.facts[node] = &facts.Node{
			Kernel: "6.1.0", IPv6: true, OpenFiles: 1 << 20, Conntrack: &facts.Use{Now: 10, Max: 1000}, Files: &facts.Use{Now: 10, Max: 1000},
			Backends: map[string]int{"nft": 40, "legacy": 0}, CNI: []facts.Conflist{{File: "10-a.conflist", Plugins: []string{"bridge", "tacit-cni"}}},
		}
		w.certificate(node, -time.Hour, 23*time.Hour, "")
	}
	for _, name := range []string{cluster.Agent, cluster.Proxy} {
		w.add(&apps.DaemonSet{ObjectMeta: meta.ObjectMeta{Namespace: "tacit-system", Name: name},
			Status: apps.DaemonSetStatus{DesiredNumberScheduled: 2, NumberAvailable: 2, UpdatedNumberScheduled: 2}})
	}
	w.add(&apps.Deployment{ObjectMeta: meta.ObjectMeta{Namespace: "tacit-system", Name: cluster.Control}, Status: apps.DeploymentStatus{AvailableReplicas: 2}})
	for _, kind := range policyKinds {
		w.custom = append(w.custom, custom("apiextensions.k8s.io/v1", "CustomResourceDefinition", kind+".security.istio.io", nil))
	}
	w.roots = root(10 * 365 * 24 * time.Hour)
	return w
}

func (w *world) add(objects ...runtime.Object) { w.objects = append(w.objects, objects...) }

// change edits the object of a type and name.
func change[T runtime.Object](t *testing.T, w *world, name string, edit func(T)) {
	t.Helper()
	for _, o := range w.objects {
		if match, ok := o.(T); ok && any(o).(meta.Object).GetName() == name {
			edit(match)
			return
		}
	}
	t.Fatalf("there is no %s", name)
}

func pod(namespace, name, node string, labels, annotations map[string]string) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, Annotations: annotations},
		Spec:       core.PodSpec{NodeName: node, Containers: []core.Container{{Name: "app"}}},
		Status:     core.PodStatus{Phase: core.PodRunning},
	}
}

func custom(apiVersion, kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec,
	}}
}

// connect makes the cluster.
func (w *world) connect(t *testing.T) *cluster.Cluster {
	t.Helper()
	if w.roots != "" {
		w.add(&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: "tacit-system", Name: "tacit-ca-root"}, Data: map[string]string{"root-cert.pem": w.roots}})
	}
	client := fake.NewClientset(w.objects...)
	client.Discovery().(*discoveryfake.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: w.kubernetes}
	client.PrependReactor("create", "selfsubjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authorization.SelfSubjectAccessReview{Status: authorization.SubjectAccessReviewStatus{Allowed: w.allowed}}, nil
	})
	lists := map[schema.GroupVersionResource]string{
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}: "CustomResourceDefinitionList",
		{Group: "crd.projectcalico.org", Version: "v1", Resource: "felixconfigurations"}:      "FelixConfigurationList",
	}
	return &cluster.Cluster{
		Namespace: "tacit-system", Client: client,
		Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, w.custom...),
		Run: func(_ context.Context, pod, container string, command []string) ([]byte, error) {
			node := strings.TrimPrefix(pod, container+"-")
			if command[0] == "tacit" {
				return json.Marshal(map[string]any{"node": node, "certificates": w.held[node]})
			}
			answer := *w.facts[node]
			if answer.Time.IsZero() {
				answer.Time = time.Now()
			}
			return json.Marshal(answer)
		},
	}
}

func TestFineCluster(t *testing.T) {
	report, err := Run(t.Context(), newWorld().connect(t))
	if err != nil {
		t.Fatal(err)
	}
	if report.Worst() != Fine || !report.Installed {
		t.Errorf("%+v", report)
	}
	topics := map[string]bool{}
	for _, f := range report.Findings {
		topics[f.Topic] = true
	}
	for _, topic := range []string{"Kubernetes", "Permissions", "Nodes", "Policies", "Other meshes", "NetworkPolicy", "Tacit", "Capture", "Certificates", "Nodes from inside"} {
		if !topics[topic] {
			t.Errorf("%s was not looked at", topic)
		}
	}
}

// A kernel without IPv6 is nothing to mend, and said.
func TestWithoutIPv6(t *testing.T) {
	w := newWorld()
	w.facts["node-b"].IPv6 = false
	report, err := Run(t.Context(), w.connect(t))
	if err != nil {
		t.Fatal(err)
	}
	told := slices.ContainsFunc(report.Findings, func(f Finding) bool { return f.Topic == "IPv6" && f.Subject == "node-b" })
	if !told || report.Worst() != Fine {
		t.Errorf("IPv6 is not mentioned, or something is in the way:\n%+v", report.Findings)
	}
}

// Before there are agents nodes are looked at by the pods that stand in for them.
func TestNodesBeforeInstallation(t *testing.T) {
	for name, tt := range map[string]struct {
		scouts  bool
		change  func(w *world)
		level   Level
		topic   string
		subject string
		text    string
	}{
		"nobody looks":  {false, func(*world) {}, Unknown, "Nodes", "all", "tacit check --nodes"},
		"all is fine":   {true, func(*world) {}, Fine, "CNI", "node-b", "10-a.conflist has bridge, portmap, and tacit-cni will come after them"},
		"old kernel":    {true, func(w *world) { w.facts["node-b"].Missing = map[string]string{"nft": "no xt_mark", "legacy": "none"} }, Broken, "Kernel", "node-b", "no xt_mark"},
		"SELinux":       {true, func(w *world) { w.facts["node-b"].SELinux = "enforcing" }, Risky, "SELinux", "node-b", "tacit install --set"},
		"no conflist":   {true, func(w *world) { w.facts["node-b"].CNI = nil }, Broken, "CNI", "node-b", "set cni.confDir"},
		"broken one":    {true, func(w *world) { w.facts["node-b"].CNI[0].Error = "not JSON" }, Broken, "CNI", "node-b", "10-a.conflist: not JSON"},
		"clocks differ": {true, func(w *world) { w.facts["node-b"].Time = time.Now().Add(time.Hour) }, Broken, "Clocks", "node-b", "its clock is ahead of node-a's"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.roots = ""
			w.objects = slices.DeleteFunc(w.objects, func(o runtime.Object) bool { return o.(meta.Object).GetNamespace() == "tacit-system" })
			for _, node := range []string{"node-a", "node-b"} {
				w.facts[node].CNI[0].Plugins = []string{"bridge", "portmap"}
				if tt.scouts {
					scout := pod("tacit-system", cluster.Agent+"-"+node, node, map[string]string{"app.kubernetes.io/name": cluster.Scout}, nil)
					scout.Spec.Containers[0].VolumeMounts = []core.VolumeMount{{MountPath: confDir}}
					w.add(scout)
				}
			}
			tt.change(w)
			report, err := Run(t.Context(), w.connect(t))
			if err != nil || report.Installed {
				t.Fatalf("installed %v, error %v", report.Installed, err)
			}
			if report.Worst() != tt.level || !slices.ContainsFunc(report.Findings, func(f Finding) bool {
				return f.Level == tt.level && f.Topic == tt.topic && f.Subject == tt.subject && strings.Contains(f.Text+f.Do, tt.text)
			}) {
				t.Errorf("want %s about %s %s: %s, got %+v", tt.level, tt.topic, tt.subject, tt.text, report.Findings)
			}
		})
	}
}

// Each thing that can be in the way is found, alone, with what to do.
func TestFindings(t *testing.T) {
	for name, test := range map[string]struct {
		level                Level
		topic, subject, text string
		change               func(t *testing.T, w *world)
	}{
		"old API server": {Broken, "Kubernetes", "API server", "v1.28.3 is too old", func(_ *testing.T, w *world) { w.kubernetes = "v1.28.3" }},
		"not allowed":    {Risky, "Permissions", "pods/exec", "you may not create pods/exec", func(_ *testing.T, w *world) { w.allowed = false }},
		"old kernel": {Broken, "Nodes", "node-a", "too old", func(t *testing.T, w *world) {
			change(t, w, "node-a", func(n *core.Node) { n.Status.NodeInfo.KernelVersion = "4.18.0-553.el8" })
		}},
		"node not ready": {Risky, "Nodes", "node-a", "not ready", func(t *testing.T, w *world) { change(t, w, "node-a", func(n *core.Node) { n.Status.Conditions = nil }) }},
		"kinds are gone": {Risky, "Policies", "peerauthentications", "no such kind", func(_ *testing.T, w *world) { w.custom = append(w.custom[:1], w.custom[2]) }},
		"not captured":   {Broken, "Capture", "shop/web", "opted in and not captured", func(t *testing.T, w *world) { change(t, w, "web", func(p *core.Pod) { p.Annotations = nil }) }},
		"still captured": {Risky, "Capture", "shop/web", "opted out and still captured", func(t *testing.T, w *world) {
			change(t, w, "web", func(p *core.Pod) { p.Labels["tacit.mesh/dataplane"] = "disabled" })
		}},
		"on the node": {Risky, "Capture", "plain/other", "in the network of its node", func(t *testing.T, w *world) {
			change(t, w, "other", func(p *core.Pod) {
				p.Spec.HostNetwork = true
				p.Labels = map[string]string{"tacit.mesh/dataplane": "enabled"}
			})
		}},
		"ambient, too": {Broken, "Other meshes", "shop/web", "ambient mode", func(t *testing.T, w *world) {
			change(t, w, "shop", func(n *core.Namespace) { n.Labels["istio.io/dataplane-mode"] = "ambient" })
		}},
		"sidecar": {Risky, "Other meshes", "shop/web", "sidecar", func(t *testing.T, w *world) {
			change(t, w, "web", func(p *core.Pod) { p.Spec.Containers[0].Name = "istio-proxy" })
		}},
		"agent missing": {Broken, "Tacit", "tacit-agent", "runs on 1 of 2 nodes", func(t *testing.T, w *world) {
			change(t, w, "tacit-agent", func(d *apps.DaemonSet) { d.Status.NumberAvailable = 1 })
		}},
		"old proxy": {Risky, "Tacit", "tacit-proxy", "1 of 2 nodes have the current version", func(t *testing.T, w *world) {
			change(t, w, "tacit-proxy", func(d *apps.DaemonSet) { d.Status.UpdatedNumberScheduled = 1 })
		}},
		"no tacitd": {Broken, "Tacit", "tacitd", "none is ready", func(t *testing.T, w *world) {
			change(t, w, "tacitd", func(d *apps.Deployment) { d.Status.AvailableReplicas = 0 })
		}},
		"CA ended":    {Broken, "Certificates", "CA", "ended on", func(_ *testing.T, w *world) { w.roots = root(-time.Hour) }},
		"CA ends":     {Risky, "Certificates", "CA", "ends on", func(_ *testing.T, w *world) { w.roots = root(30 * 24 * time.Hour) }},
		"no CA":       {Broken, "Certificates", "CA", "no certificate", func(_ *testing.T, w *world) { w.roots = "none" }},
		"not renewed": {Risky, "Certificates", "node-a", "was not renewed: tacitd is away", func(_ *testing.T, w *world) { w.certificate("node-a", -20*time.Hour, 4*time.Hour, "tacitd is away") }},
		"ended":       {Broken, "Certificates", "node-a", "ended", func(_ *testing.T, w *world) { w.certificate("node-a", -25*time.Hour, -time.Hour, "") }},
		"SELinux":     {Risky, "SELinux", "node-b", "container_t", func(_ *testing.T, w *world) { w.facts["node-b"].SELinux = "enforcing" }},
		"kernel refuses": {Broken, "Kernel", "node-b", "nft: no xt_mark; legacy: no ip_tables", func(_ *testing.T, w *world) {
			w.facts["node-b"].Missing = map[string]string{"nft": "no xt_mark", "legacy": "no ip_tables"}
			w.facts["node-b"].Backends = nil
		}},
		"both backends":   {Risky, "iptables", "node-b", "40 nft, 3 legacy", func(_ *testing.T, w *world) { w.facts["node-b"].Backends["legacy"] = 3 }},
		"backend refuses": {Broken, "iptables", "node-b", "uses nft iptables", func(_ *testing.T, w *world) { w.facts["node-b"].Missing = map[string]string{"nft": "no xt_mark"} }},
		"conntrack full":  {Risky, "Limits", "node-b", "conntrack: 900 of 1000", func(_ *testing.T, w *world) { w.facts["node-b"].Conntrack.Now = 900 }},
		"files full":      {Risky, "Limits", "node-b", "open files: 900 of 1000", func(_ *testing.T, w *world) { w.facts["node-b"].Files.Now = 900 }},
		"few files":       {Risky, "Limits", "node-b", "may open 1024 files", func(_ *testing.T, w *world) { w.facts["node-b"].OpenFiles = 1024 }},
		"no conflist":     {Broken, "CNI", "node-b", "no configuration", func(_ *testing.T, w *world) { w.facts["node-b"].CNI = nil }},
		"bad conflist": {Broken, "CNI", "node-b", "10-a.conflist: not JSON", func(_ *testing.T, w *world) {
			w.facts["node-b"].CNI[0] = facts.Conflist{File: "10-a.conflist", Error: "not JSON"}
		}},
		"not chained": {Broken, "CNI", "node-b", "has no tacit-cni in it (bridge)", func(_ *testing.T, w *world) { w.facts["node-b"].CNI[0].Plugins = []string{"bridge"} }},
		"other conflist": {Broken, "CNI", "node-b", "05-b.conflist comes before", func(_ *testing.T, w *world) {
			w.facts["node-b"].CNI = append([]facts.Conflist{{File: "05-b.conflist"}}, w.facts["node-b"].CNI...)
		}},
		"clock":            {Risky, "Clocks", "node-b", "ahead of node-a's by", func(_ *testing.T, w *world) { w.facts["node-b"].Time = time.Now().Add(20 * time.Second) }},
		"clock far off":    {Broken, "Clocks", "node-b", "not to be valid", func(_ *testing.T, w *world) { w.facts["node-b"].Time = time.Now().Add(10 * time.Minute) }},
		"Cilium exclusive": {Broken, "CNI", "Cilium", "exclusive mode", func(_ *testing.T, w *world) { w.cilium(map[string]string{"bpf-lb-sock-hostns-only": "true"}) }},
		"Cilium socket LB": {Broken, "CNI", "Cilium", "socket load balancing", func(_ *testing.T, w *world) {
			w.cilium(map[string]string{"cni-exclusive": "false", "kube-proxy-replacement": "true"})
		}},
		"Cilium BPF masquerade": {Risky, "CNI", "Cilium", "masquerading", func(_ *testing.T, w *world) {
			w.cilium(map[string]string{"cni-exclusive": "false", "enable-bpf-masquerade": "true"})
		}},
		"Calico BPF": {Broken, "CNI", "Calico", "BPF data plane", func(_ *testing.T, w *world) {
			w.custom = append(w.custom, custom("crd.projectcalico.org/v1", "FelixConfiguration", "default", map[string]any{"bpfEnabled": true}))
		}},
		"NetworkPolicy in":  {Broken, "NetworkPolicy", "shop/web", "lets in ports", func(_ *testing.T, w *world) { w.add(networkPolicy(networking.PolicyTypeIngress, 8080)) }},
		"NetworkPolicy out": {Broken, "NetworkPolicy", "shop/web", "lets out ports", func(_ *testing.T, w *world) { w.add(networkPolicy(networking.PolicyTypeEgress, 5432)) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			test.change(t, w)
			report, err := Run(t.Context(), w.connect(t))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range report.Findings {
				if f.Level == Fine {
					continue
				}
				if f.Topic != test.topic || f.Do == "" {
					t.Errorf("also found, or without what to do: %+v", f)
				}
				found = found || f.Level == test.level && f.Subject == test.subject && strings.Contains(f.Text, test.text)
			}
			if !found || report.Worst() != test.level {
				t.Errorf("not found, or not the worst:\n%+v", report.Findings)
			}
		})
	}
}

func (w *world) certificate(node string, notBefore, notAfter time.Duration, problem string) {
	now := time.Now()
	w.held[node] = []admin.Certificate{{Identity: "spiffe://td/ns/shop/sa/web", NotBefore: now.Add(notBefore), NotAfter: now.Add(notAfter), Error: problem}}
}

func (w *world) cilium(settings map[string]string) {
	w.add(&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: "kube-system", Name: "cilium-config"}, Data: settings})
}

func networkPolicy(direction networking.PolicyType, ports ...int) *networking.NetworkPolicy {
	p := &networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: "web"}}
	p.Spec.PolicyTypes = []networking.PolicyType{direction}
	var list []networking.NetworkPolicyPort
	for _, port := range ports {
		number := intstr.FromInt(port)
		list = append(list, networking.NetworkPolicyPort{Port: &number})
	}
	if direction == networking.PolicyTypeIngress {
		p.Spec.Ingress = []networking.NetworkPolicyIngressRule{{Ports: list}}
	} else {
		p.Spec.Egress = []networking.NetworkPolicyEgressRule{{Ports: list}}
	}
	return p
}
