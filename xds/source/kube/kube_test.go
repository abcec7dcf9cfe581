package kube

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patient = 20 * time.Second

// fixture is a cluster, a source of it, and the mesh that it leads to.
type fixture struct {
	t       *testing.T
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	source  *Source

	mu      sync.Mutex
	changed chan struct{} // closed on a change
	rounds  int
	last    int // objects of the last round
	mesh    *build.Mesh
	errs    []error
}

func newFixture(t *testing.T, policies ...string) *fixture {
	lists := map[schema.GroupVersionResource]string{crds: "CustomResourceDefinitionList"}
	for _, kind := range security.Kinds() {
		for _, version := range kind.Versions() {
			lists[schema.GroupVersionResource{Group: kind.Group(), Version: version, Resource: kind.Resource}] = kind.Kind.Kind + "List"
		}
	}
	var objects []runtime.Object
	for _, text := range policies {
		objects = append(objects, parse(t, text))
	}
	f := &fixture{
		t: t, client: kubetest.ShowDeletions(fake.NewClientset()), changed: make(chan struct{}),
		dynamic: kubetest.ShowDeletions(dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...)),
		mesh:    build.New(build.Settings{RootNamespace: "root", Accounts: true}),
	}
	f.source = &Source{Client: f.client, Dynamic: f.dynamic, Log: zap.NewNop()}
	return f
}

func (f *fixture) start() {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.source.Run(ctx, f.change)
	}()
	f.t.Cleanup(func() { cancel(); <-done })
}

func (f *fixture) change(c build.Changes, errs []error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mesh.Apply(c)
	f.errs = errs
	f.rounds++
	f.last = len(c.Set) + len(c.Gone)
	close(f.changed)
	f.changed = make(chan struct{})
}

// await waits until the mesh is as wanted.
func (f *fixture) await(what string, wanted func(r build.Result, errs []error) bool) {
	f.t.Helper()
	deadline := time.After(patient)
	for {
		f.mu.Lock()
		r, errs, changed := f.mesh.Result(), f.errs, f.changed
		ok := f.rounds > 0 && wanted(r, errs)
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("%s: not so, with workloads %v, policies %+v, errors %v, waiting for %v", what, r.Workloads, r.Policies, errs, f.source.Waiting())
		}
	}
}

func (f *fixture) firstError() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errs[0].Error()
}

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	data, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = u.UnmarshalJSON(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func definition(kind security.Kind, version string, established bool) string {
	status := map[bool]string{true: `"True"`, false: `"False"`}[established]
	if kind.Group() != security.Group {
		version = kind.Versions()[0]
	}
	return "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: " + kind.Resource + "." + kind.Group() + "}\n" +
		"spec: {versions: [{name: v1alpha1, served: true}, {name: " + version + ", served: true}]}\nstatus: {conditions: [{type: Established, status: " + status + "}]}\n"
}

func definitions(version string) (out []string) {
	for _, kind := range security.Kinds() {
		out = append(out, definition(kind, version, true))
	}
	return out
}

func policyResource(kind int, version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: security.Group, Version: version, Resource: security.Kinds()[kind].Resource}
}

func (f *fixture) createPolicy(kind int, version, text string) {
	f.t.Helper()
	u := parse(f.t, text)
	if _, err := f.dynamic.Resource(policyResource(kind, version)).Namespace(u.GetNamespace()).Create(f.t.Context(), u, metav1.CreateOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) updatePolicy(text string) {
	f.t.Helper()
	u := parse(f.t, text)
	if _, err := f.dynamic.Resource(policyResource(0, "v1")).Namespace(u.GetNamespace()).Update(f.t.Context(), u, metav1.UpdateOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

const (
	allowWeb = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, generation: 1, uid: u}\n" +
		"spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}\n"
	broken = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, generation: 2, uid: u}\n" +
		"spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {nameSpaces: [shop]}}]}]}\n"
)

func (f *fixture) pod(name string) *corev1.Pod {
	f.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{"tacit.mesh/redirection": "enabled"}},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "198.18.0.1"},
	}
	if _, err := f.client.CoreV1().Pods("shop").Create(f.t.Context(), p, metav1.CreateOptions{}); err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fixture) everything() *corev1.Pod {
	f.t.Helper()
	ctx, o := f.t.Context(), metav1.CreateOptions{}
	must := func(_ any, err error) {
		if err != nil {
			f.t.Fatal(err)
		}
	}
	must(f.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"tacit.mesh/dataplane": "enabled"}}}, o))
	must(f.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}, o))
	must(f.client.CoreV1().ServiceAccounts("shop").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}}, o))
	must(f.client.CoreV1().Services("shop").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "shop"}, Spec: corev1.ServiceSpec{ClusterIP: "198.18.9.1", Ports: []corev1.ServicePort{{Port: 80}}}}, o))
	must(f.client.DiscoveryV1().EndpointSlices("shop").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "s-1", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Ports:      []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"198.18.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "web"}}},
	}, o))
	return f.pod("web")
}

var webIdentity = model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

// All kinds are read, followed, and let go of.
func TestEveryKind(t *testing.T) {
	for _, version := range security.Kinds()[0].Versions() {
		t.Run(version, func(t *testing.T) {
			f := newFixture(t, definitions(version)...)
			pod := f.everything()
			f.createPolicy(0, version, allowWeb)
			f.start()
			f.await("the first round", func(r build.Result, errs []error) bool {
				return len(r.Workloads) == 1 && r.Workloads[0].Locality.Zone == "z" && r.Workloads[0].Protocol == model.ProtocolHBONE &&
					len(r.Workloads[0].Services) == 1 && len(r.Workloads[0].Policies) == 1 && r.Identities["n1"][webIdentity] && len(errs) == 0
			})
			if waiting := f.source.Waiting(); len(waiting) > 0 {
				t.Errorf("still waiting for %v", waiting)
			}
			f.createPolicy(1, version, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n")
			f.await("another policy", func(r build.Result, _ []error) bool { return len(r.Workloads[0].Policies) == 2 })
			if err := f.client.CoreV1().ServiceAccounts("shop").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			f.await("the account has gone", func(r build.Result, _ []error) bool {
				return len(r.Identities) == 0 && len(r.Workloads) == 1 && f.last == 1 // what was told is not told again
			})
			pod.Status.Phase = corev1.PodSucceeded
			if _, err := f.client.CoreV1().Pods("shop").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			f.await("the pod has finished", func(r build.Result, _ []error) bool { return len(r.Workloads) == 0 })
			if err := f.client.CoreV1().Services("shop").Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			f.await("the service has gone", func(r build.Result, _ []error) bool { return len(r.Services) == 0 })
			if err := f.dynamic.Resource(policyResource(0, version)).Namespace("shop").Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			f.await("the policy has gone", func(r build.Result, _ []error) bool { return len(r.Policies) == 1 })
		})
	}
}

// Nothing is told before each of the kinds has been listed.
func TestNothingBeforeAllLists(t *testing.T) {
	for _, late := range []string{"pods", "namespaces", "services", "endpointslices", "nodes", "serviceaccounts", "authorizationpolicies", "peerauthentications", "customresourcedefinitions"} {
		t.Run(late, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, definitions("v1")...)
			f.everything()
			var held atomic.Bool
			held.Store(true)
			hold := func(clienttesting.Action) (bool, runtime.Object, error) {
				return held.Load(), nil, apierrors.NewServiceUnavailable("not yet")
			}
			f.client.PrependReactor("list", late, hold)
			f.dynamic.PrependReactor("list", late, hold)
			f.start()
			alone := map[string]int{"customresourcedefinitions": len(security.Kinds())}[late]
			f.awaitWaiting(func(waiting []string) bool {
				return len(waiting) == max(alone, 1) && strings.Contains(waiting[0], late)
			})
			f.mu.Lock()
			rounds := f.rounds
			f.mu.Unlock()
			if rounds != 0 {
				t.Error("something was told")
			}
			held.Store(false)
			f.await("the rest", func(r build.Result, _ []error) bool { return len(r.Workloads) == 1 })
		})
	}
}

func TestForbiddenNamesTheVerb(t *testing.T) {
	f := newFixture(t, definitions("v1")...)
	f.client.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "", nil)
	})
	f.start()
	f.awaitWaiting(func(waiting []string) bool {
		return len(waiting) == 1 && strings.Contains(waiting[0], "grant tacitd's ServiceAccount the verbs list and watch on nodes")
	})
}

// awaitWaiting polls: informers tell nobody when they have listed.
func (f *fixture) awaitWaiting(wanted func([]string) bool) {
	f.t.Helper()
	deadline, tick := time.After(patient), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiting := f.source.Waiting(); !wanted(waiting); waiting = f.source.Waiting() {
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatalf("waiting for %v", waiting)
		}
	}
}
