package install

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/xds/source/kube"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

// chartAgent is the DaemonSet as the chart has it.
func chartAgent(t *testing.T) *apps.DaemonSet {
	t.Helper()
	text, err := deploy.Render(deploy.Namespace, nil)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(text, "---\n") {
		d := &apps.DaemonSet{}
		if err := yaml.Unmarshal([]byte(doc), d); err == nil && d.Kind == "DaemonSet" && d.Name == cluster.Agent {
			return d
		}
	}
	t.Fatal("the chart has no agent")
	return nil
}

// A cleanup has the agent's rights and arguments, and can take away the
// directory that the agent's mount is.
func TestCleanupPod(t *testing.T) {
	agent := chartAgent(t)
	pod := cleanupPod(agent, "node-a")
	container := pod.Spec.Containers[0]
	for _, want := range []string{"cleanup", "--kubernetes", "--node=$(NODE_NAME)", "--run-dir=/run/tacit/agent", "--cni-bin-dir=/host/cni/bin", "--cni-conf-dir=/host/cni/net.d"} {
		if !slices.Contains(container.Args, want) {
			t.Errorf("no argument %s in %v", want, container.Args)
		}
	}
	if slices.ContainsFunc(container.Args, func(a string) bool { return strings.HasPrefix(a, "--metrics") || strings.HasPrefix(a, "--proxy-uid") }) {
		t.Errorf("arguments that cleanup does not know: %v", container.Args)
	}
	if pod.Spec.NodeName != "node-a" || pod.Spec.RestartPolicy != core.RestartPolicyNever || container.ReadinessProbe != nil || container.Ports != nil {
		t.Errorf("%+v", pod.Spec)
	}
	if pod.Labels["app.kubernetes.io/name"] == cluster.Agent {
		t.Error("the DaemonSet would take it for one of its own")
	}
	mounts := map[string]string{}
	for _, m := range container.VolumeMounts {
		for _, v := range pod.Spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				mounts[m.MountPath] = v.HostPath.Path
			}
		}
	}
	if len(mounts) != 3 || mounts["/run"] != "/run" || mounts["/host/cni/bin"] != "/opt/cni/bin" || mounts["/host/cni/net.d"] != "/etc/cni/net.d" {
		t.Errorf("mounts of the node: %v", mounts)
	}
	if len(agent.Spec.Template.Spec.Volumes) != 5 {
		t.Error("the agent's own template was changed")
	}
}

func readyNode(name string, ready core.ConditionStatus) *core.Node {
	return &core.Node{
		ObjectMeta: meta.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Status:     core.NodeStatus{Conditions: []core.NodeCondition{{Type: core.NodeReady, Status: ready}}},
	}
}

// kubelets end each cleanup pod as a test says, by its node. A name is given
// as the API server would.
func kubelets(client *fake.Clientset, phases map[string]core.PodPhase) {
	client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		pod := a.(clienttesting.CreateAction).GetObject().(*core.Pod)
		pod.Name = pod.GenerateName + pod.Spec.NodeName
		pod.Status.Phase = phases[pod.Spec.NodeName]
		return false, nil, nil
	})
}

func TestCleanNodes(t *testing.T) {
	agent := chartAgent(t)
	client := fake.NewClientset(agent.DeepCopy(), readyNode("good", core.ConditionTrue), readyNode("bad", core.ConditionTrue),
		readyNode("stuck", core.ConditionTrue), readyNode("away", core.ConditionUnknown))
	kubelets(client, map[string]core.PodPhase{"good": core.PodSucceeded, "bad": core.PodFailed, "stuck": core.PodPending})
	c := &cluster.Cluster{Namespace: deploy.Namespace, Client: client}
	var out bytes.Buffer
	err := Removal{Timeout: 2 * time.Second, Out: &out}.cleanNodes(t.Context(), c, agent)
	if err == nil {
		t.Fatal("all went well")
	}
	for _, want := range []string{"node away is not ready and was not cleaned", "clean node bad: fake logs", "clean node stuck: not done after 2s"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "good") || !strings.Contains(out.String(), "Cleaning 3 nodes") {
		t.Errorf("%v\n%s", err, out.String())
	}
	_, err = client.AppsV1().DaemonSets(deploy.Namespace).Get(t.Context(), cluster.Agent, meta.GetOptions{})
	isGone(t, "the agent", err)
	if left, err := client.CoreV1().Pods(deploy.Namespace).List(t.Context(), meta.ListOptions{}); err != nil || len(left.Items) > 0 {
		t.Errorf("pods are left: %v, %v", left.Items, err)
	}
}

// Agents are told to let go, and do not install the plugin again; what is open
// at the end of the drain is counted.
func TestLetGo(t *testing.T) {
	for name, test := range map[string]struct {
		connections []string // of each time that the proxy is asked
		want        string
	}{
		"none":      {[]string{`{"connections":[]}`}, "No connection had to be cut."},
		"they end":  {[]string{`{"connections":[{"id":"a"}]}`, `{"connections":[]}`}, "No connection had to be cut."},
		"they live": {[]string{`{"connections":[{"id":"a"},{"id":"b"},{"id":"a"}]}`}, "Cutting 2 connections that are still open after 2s."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agent := chartAgent(t)
			agent.Generation = 1
			agent.Status = apps.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 1, NumberAvailable: 1, UpdatedNumberScheduled: 1}
			c := connect(agent.DeepCopy(), proxyPod("a", "node-a"))
			asked := 0
			c.Run = func(context.Context, string, string, []string) ([]byte, error) {
				answer := test.connections[min(asked, len(test.connections)-1)]
				asked++
				return []byte(answer), nil
			}
			var out bytes.Buffer
			if err := (Removal{Drain: 2 * time.Second, Timeout: time.Minute, Out: &out}).letGo(t.Context(), c, agent); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), test.want) {
				t.Errorf("no %q in\n%s", test.want, out.String())
			}
			now, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(t.Context(), cluster.Agent, meta.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			args := strings.Join(now.Spec.Template.Spec.Containers[0].Args, " ")
			if !strings.Contains(args, " --release") || strings.Contains(args, "--cni-") || !strings.Contains(args, "--run-dir=") {
				t.Errorf("the agents run with %s", args)
			}
			if u := now.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable; u.String() != "100%" {
				t.Errorf("%v of them at a time", u)
			}
		})
	}
}

func kind(group, plural string, labels map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": plural + "." + group, "labels": labels},
		"spec": map[string]any{
			"group": group, "names": map[string]any{"plural": plural},
			"versions": []any{map[string]any{"name": "v1alpha1", "served": false}, map[string]any{"name": "v1", "served": true}},
		},
	}}
}

// What an installation has made goes; what others made, and kinds of which
// there are objects, stay and are named.
func TestLeftovers(t *testing.T) {
	const group = "security.istio.io"
	ours := map[string]any{"app.kubernetes.io/part-of": "tacit"}
	lists := map[schema.GroupVersionResource]string{kinds: "CustomResourceDefinitionList"}
	for _, k := range security.Kinds() {
		lists[schema.GroupVersionResource{Group: k.Group(), Version: k.Versions()[0], Resource: k.Resource}] = k.Kind.Kind + "List"
	}
	objects := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, kind(group, "authorizationpolicies", ours), kind(group, "peerauthentications", ours), kind(group, "requestauthentications", nil),
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": group + "/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "p", "namespace": "shop"},
			"status": map[string]any{"conditions": []any{map[string]any{"type": kube.EnforcedCondition, "status": "True"}, map[string]any{"type": "istio.io/Else"}}},
		}})
	c := connect(
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: deploy.Namespace, Labels: map[string]string{ownerLabel: owner}}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "shop", Labels: map[string]string{optIn: "enabled"}}},
		&core.Secret{ObjectMeta: meta.ObjectMeta{Namespace: deploy.Namespace, Name: caSecret}},
	)
	c.Dynamic = objects
	var out bytes.Buffer
	if err := (Removal{KeepCA: true, Out: &out}).removeLeftovers(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client.CoreV1().Secrets(deploy.Namespace).Get(t.Context(), caSecret, meta.GetOptions{}); err != nil {
		t.Errorf("the CA that was to be kept: %v", err)
	}
	for _, want := range []string{"Left: Secret tacit-ca", "Left: authorizationpolicies.security.istio.io, of which", "kubectl label namespace shop tacit.mesh/dataplane-"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	policies := objects.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "authorizationpolicies"})
	policy, err := policies.Namespace("shop").Get(t.Context(), "p", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if left, _, _ := unstructured.NestedSlice(policy.Object, "status", "conditions"); len(left) != 1 || left[0].(map[string]any)["type"] != "istio.io/Else" {
		t.Errorf("conditions are %v, want the others' alone", left)
	}
	for name, stays := range map[string]bool{"authorizationpolicies": true, "peerauthentications": false, "requestauthentications": true} {
		_, err := objects.Resource(kinds).Get(t.Context(), name+"."+group, meta.GetOptions{})
		if (err == nil) != stays {
			t.Errorf("%s: %v, stays: %v", name, err, stays)
		}
	}
	if err := (Removal{Out: &out}).removeLeftovers(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, err = c.Client.CoreV1().Secrets(deploy.Namespace).Get(t.Context(), caSecret, meta.GetOptions{})
	isGone(t, "the CA", err)
	_, err = c.Client.CoreV1().Namespaces().Get(t.Context(), deploy.Namespace, meta.GetOptions{})
	isGone(t, "the namespace", err)
}

// The display follows the workloads to their end, and says why one does not
// get there.
func TestProgress(t *testing.T) {
	agent := chartAgent(t)
	agent.Generation = 2
	agent.Status = apps.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 2, NumberAvailable: 1, UpdatedNumberScheduled: 1}
	broken := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: deploy.Namespace, Name: "tacit-agent-x", Labels: map[string]string{"app.kubernetes.io/name": cluster.Agent}},
		Spec:       core.PodSpec{NodeName: "node-b"},
		Status: core.PodStatus{ContainerStatuses: []core.ContainerStatus{{State: core.ContainerState{
			Waiting: &core.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}},
	}
	client := fake.NewClientset(agent.DeepCopy(), broken)
	c := &cluster.Cluster{Namespace: deploy.Namespace, Client: client}

	var out bytes.Buffer
	err := Options{Timeout: 3 * time.Second, Out: &out}.wait(t.Context(), c, cluster.Agent)
	const problem = "1 of 2 nodes ready: on node-b: ImagePullBackOff no such image"
	if err == nil || !strings.Contains(err.Error(), problem) || !strings.Contains(err.Error(), "not ready after 3s") || strings.Contains(out.String(), problem) {
		t.Errorf("error %v\noutput %s", err, out.String())
	}

	// A status of before the last change says nothing.
	stale := agent.DeepCopy()
	stale.Status.NumberAvailable, stale.Status.UpdatedNumberScheduled = 2, 2
	var p progress
	if p.fromDaemonSet(stale, nil); p.done {
		t.Error("done by a status that is older than the DaemonSet")
	}
	// A node with an old pod that drains beside the new one is done.
	surging := agent.DeepCopy()
	surging.Generation = surging.Status.ObservedGeneration
	surging.Annotations = map[string]string{apps.DeprecatedTemplateGeneration: "2"}
	surging.Status.NumberAvailable, surging.Status.UpdatedNumberScheduled = 2, 0
	revision := func(n string) *core.Pod {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Labels: map[string]string{podGeneration: n}}}
		pod.Status.Conditions = []core.PodCondition{{Type: core.PodReady, Status: core.ConditionTrue}}
		return pod
	}
	for _, test := range []struct {
		pods []*core.Pod
		done bool
	}{
		{[]*core.Pod{revision("1"), revision("1"), revision("2")}, false},
		{[]*core.Pod{revision("1"), revision("1"), revision("2"), revision("2")}, true},
	} {
		if p.fromDaemonSet(surging, test.pods); p.done != test.done {
			t.Errorf("%d pods: done is %v", len(test.pods), p.done)
		}
	}

	// Problems are shown once it has had time to settle.
	var screen bytes.Buffer
	drawn := &progressScreen{out: &screen}
	for _, problems := range []bool{false, true} {
		drawn.problems = problems
		drawn.show([]progress{{name: cluster.Agent, ready: 1, total: 2, problem: "on node-b: ImagePullBackOff no such image"}})
		if strings.Contains(screen.String(), problem) != problems {
			t.Errorf("problems %v: %s", problems, screen.String())
		}
	}

	// Somebody mends it once the display shows that it is not ready.
	shown := make(chan struct{})
	ended := make(chan error, 1)
	out.Reset()
	go func() {
		ended <- Options{Timeout: time.Minute, Out: &signalling{&out, shown}}.wait(t.Context(), c, cluster.Agent)
	}()
	<-shown
	agent.Status = apps.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 2, NumberAvailable: 2, UpdatedNumberScheduled: 2}
	if _, err := client.AppsV1().DaemonSets(deploy.Namespace).UpdateStatus(t.Context(), agent, meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || !strings.Contains(out.String(), "2 of 2 nodes ready\n") {
		t.Errorf("error %v\noutput %s", err, out.String())
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	agent.Generation = 3
	if err := (Options{Timeout: time.Minute, Out: &out}).wait(ctx, connect(agent), cluster.Agent); !errors.Is(err, context.Canceled) {
		t.Errorf("told to stop: %v", err)
	}
}

// signalling tells when something was written for the first time.
type signalling struct {
	out     *bytes.Buffer
	written chan struct{}
}

func (s *signalling) Write(p []byte) (int, error) {
	select {
	case <-s.written:
	default:
		close(s.written)
	}
	return s.out.Write(p)
}
