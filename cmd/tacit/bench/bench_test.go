package bench

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/suite"
)

const proxyMetrics = "# HELP x\nprocess_cpu_seconds_total 12.5\nprocess_resident_memory_bytes 2.5e+07\nother 1\n"

// world is a cluster of two nodes with proxies, on which pods run as soon as
// they are made.
type world struct {
	*bench
	policies *dynamicfake.FakeDynamicClient
	// obstruct changes what a new pod is like.
	obstruct func(*core.Pod)
	mu       sync.Mutex
	loads    []string // "POD ADDRESS" of those put on
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{obstruct: func(*core.Pod) {}}
	client := fake.NewClientset(proxy("a", "10.0.0.1"), proxy("b", "10.0.0.2"))
	client.PrependReactor("create", "namespaces", func(action k8stesting.Action) (bool, runtime.Object, error) {
		action.(k8stesting.CreateAction).GetObject().(*core.Namespace).Name = "tacit-bench-x"
		return false, nil, nil
	})
	client.PrependReactor("create", "pods", func(action k8stesting.Action) (bool, runtime.Object, error) {
		p := action.(k8stesting.CreateAction).GetObject().(*core.Pod)
		p.Status = core.PodStatus{Phase: core.PodRunning, PodIP: "ip-of-" + p.Name}
		if p.Labels[dataplane] == enabled {
			p.Annotations[redirection] = enabled
		}
		w.obstruct(p)
		return false, nil, nil
	})
	w.policies = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		security.WithResource("authorizationpolicies"): "AuthorizationPolicyList", security.WithResource("peerauthentications"): "PeerAuthenticationList"})
	c := &cluster.Cluster{Namespace: "tacit-system", Client: client, Dynamic: w.policies}
	w.bench = &bench{Cluster: c, Config: Config{Timeout: 10 * time.Second, Out: io.Discard}, addresses: map[string]string{},
		in: func(namespace string) *cluster.Cluster {
			return &cluster.Cluster{Namespace: namespace, Client: client, Run: w.run}
		}}
	return w
}

func proxy(node, address string) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: "tacit-system", Name: "tacit-proxy-" + node, Labels: map[string]string{"app.kubernetes.io/name": cluster.Proxy}},
		Spec:       core.PodSpec{NodeName: node, Containers: []core.Container{{Name: cluster.Proxy, Image: "registry.example:5000/mesh/tacit-proxy:v1"}}},
		Status:     core.PodStatus{Phase: core.PodRunning, PodIP: address},
	}
}

// run plays the pods.
func (w *world) run(ctx context.Context, pod, _ string, command []string) ([]byte, error) {
	if command[2] == "fetch" {
		return []byte(proxyMetrics), ctx.Err()
	}
	var c load.Config
	if err := json.Unmarshal([]byte(command[3]), &c); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.loads = append(w.loads, pod+" "+c.Address)
	w.mu.Unlock()
	text, err := json.Marshal(load.Result{Requests: 1, Bytes: 1, Elapsed: c.Time, P50: time.Millisecond})
	return text, errors.Join(err, ctx.Err())
}

// left says whether anything is.
func (w *world) left(t *testing.T) bool {
	t.Helper()
	all, err := w.Client.CoreV1().Namespaces().List(context.WithoutCancel(t.Context()), meta.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(all.Items) > 0
}

func options(what string) suite.Options {
	return suite.Options{Rounds: 1, Time: time.Second, Measurements: regexp.MustCompile(what), Paths: regexp.MustCompile(""), Progress: func(string, ...any) {}}
}

func TestMeasure(t *testing.T) {
	w := newWorld(t)
	made := map[string]*core.Pod{}
	w.obstruct = func(p *core.Pod) { made[p.Name] = p.DeepCopy() }
	r, err := w.measure(t.Context(), options("^round trips of 1 KB, 1 conn|requests|beside bulk"))
	if err != nil {
		t.Fatal(err)
	}
	if w.left(t) {
		t.Error("the namespace is still there")
	}
	if got := made[plainServer].Spec.Containers[0].Image; got != "registry.example:5000/mesh/tacit:v1" {
		t.Errorf("the image is %s", got)
	}
	for name, node := range map[string]string{plainClient: "a", plainServer: "b", meshedNear: "a", meshedHTTP: "b"} {
		terms := made[name].Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
		if got := terms[0].MatchFields[0].Values[0]; got != node {
			t.Errorf("pod %s goes to node %s, want %s", name, got, node)
		}
	}
	for _, want := range []string{
		plainClient + " ip-of-" + plainServer + ":7000", meshedClient + " ip-of-" + meshedServer + ":7000", meshedClient + " ip-of-" + meshedServer + ":7100",
		meshedClient + " ip-of-" + meshedHTTP + ":7003", meshedNeighbour + " ip-of-" + meshedServer + ":7001",
	} {
		if !slices.Contains(w.loads, want) {
			t.Errorf("no load from %s", want)
		}
	}
	if len(r.Paths) != 6 || len(r.Rows) == 0 || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "between nodes, p50: +0 µs") }) {
		t.Errorf("the report has paths %v, %d rows and notes %q", r.Paths, len(r.Rows), r.Notes)
	}
	list, err := w.policies.Resource(security.WithResource("authorizationpolicies")).Namespace("tacit-bench-x").List(t.Context(), meta.ListOptions{})
	if err != nil || len(list.Items) != 3 {
		t.Errorf("policies: %v, %v", list, err)
	}
}

// Whatever ends a run, nothing is left of it.
func TestNothingIsLeft(t *testing.T) {
	for _, c := range []struct {
		name, want string
		set        func(w *world, interrupt func())
	}{
		{"interrupted", "context canceled", func(w *world, interrupt func()) {
			w.obstruct = func(p *core.Pod) {
				if p.Name == meshedNeighbour { // the last
					interrupt()
				}
			}
		}},
		{"the image is not there", "ErrImagePull", func(w *world, _ func()) {
			w.Timeout = time.Second
			w.obstruct = func(p *core.Pod) {
				p.Status.ContainerStatuses = []core.ContainerStatus{{State: core.ContainerState{Waiting: &core.ContainerStateWaiting{Reason: "ErrImagePull"}}}}
			}
		}},
		{"a pod is not captured", "not captured", func(w *world, _ func()) {
			w.Timeout = time.Second
			w.obstruct = func(p *core.Pod) { delete(p.Annotations, redirection) }
		}},
		{"one node", "two nodes", func(w *world, _ func()) { w.ClientNode, w.ServerNode = "a", "a" }},
		{"no such node", "no proxy runs on node c", func(w *world, _ func()) { w.ServerNode = "c" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := newWorld(t)
			c.set(w, cancel)
			if _, err := w.measure(ctx, options("")); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if w.left(t) {
				t.Error("the namespace is still there")
			}
		})
	}
}

func TestImageBeside(t *testing.T) {
	for image, want := range map[string]string{
		"tacit-proxy:v1":                    "tacit:v1",
		"tacit-proxy.example/x/tacit-proxy": "tacit-proxy.example/x/tacit",
		"r.example/tacit-proxy@sha256:0123": "",
		"r.example/proxy:v1":                "",
	} {
		p := proxy("a", "")
		p.Spec.Containers[0].Image = image
		if got, err := imageBeside(*p); got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v; want %q", image, got, err, want)
		}
	}
}

func TestProcessMetrics(t *testing.T) {
	cpu, memory, err := processMetrics([]byte(proxyMetrics))
	if err != nil || cpu != 12500*time.Millisecond || memory != 25_000_000 {
		t.Errorf("%v, %d, %v", cpu, memory, err)
	}
	for _, text := range []string{"", "process_cpu_seconds_total 1\n", "process_cpu_seconds_total x\nprocess_resident_memory_bytes 1\n"} {
		if _, _, err := processMetrics([]byte(text)); err == nil {
			t.Errorf("%q tells something", text)
		}
	}
}
