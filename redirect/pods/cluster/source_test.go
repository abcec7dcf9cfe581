package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
	"github.com/tacit-mesh/tacit/redirect/enrol"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

const deadline = 20 * time.Second

func namespace(name, label string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if label != "" {
		n.Labels = map[string]string{enrol.Label: label}
	}
	return n
}

func pod(namespace, name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: "here"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "198.18.0.1"}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func class(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.RuntimeClassName = &name }
}

// running is a source that reads from a fake API.
type running struct {
	*Source
	client  *fake.Clientset
	updates chan []pods.Pod
	logs    *observer.ObservedLogs
}

func start(t *testing.T, objects ...runtime.Object) *running {
	t.Helper()
	return startWith(t, kubetest.ShowDeletions(fake.NewClientset(objects...)))
}

func startWith(t *testing.T, client *fake.Clientset) *running {
	t.Helper()
	return startAgainst(t, kubetest.NodeAPI{Clientset: client})
}

func startAgainst(t *testing.T, api kubetest.NodeAPI) *running {
	t.Helper()
	core, logs := observer.New(zap.ErrorLevel)
	reader := pods.Reader{Node: "here", TrustDomain: "td", Skips: model.SkipSettings{Mode: model.SkipsAny}}
	s, err := NewSource(Config{Client: api, Reader: reader, MaxBypass: bypass.DefaultMax, Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Source: s, client: api.Clientset, updates: make(chan []pods.Pod), logs: logs}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- s.Run(ctx, func(list []pods.Pod) {
			select {
			case r.updates <- list:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

// await takes lists until one is as wanted.
func (r *running) await(t *testing.T, what string, holds func(map[string]pods.Pod) bool) map[string]pods.Pod {
	t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case list := <-r.updates:
			byName := map[string]pods.Pod{}
			for _, p := range list {
				byName[p.Name] = p
			}
			if holds(byName) {
				return byName
			}
		case <-timeout:
			t.Fatalf("never so: %s; the log says %v", what, r.logs.All())
		}
	}
}

// drain lets the source go on while a test looks elsewhere.
func (r *running) drain(t *testing.T) {
	t.Helper()
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case <-r.updates:
			case <-stop:
				return
			}
		}
	}()
}

// until polls what the fake API holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	timeout, tick := time.After(deadline), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never so: %s", what)
		}
	}
}

func TestPods(t *testing.T) {
	elsewhere := func(p *corev1.Pod) { p.Spec.NodeName = "there" }
	r := start(t,
		namespace("in", "enabled"), namespace("out", ""),
		&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "safe"}, Handler: "kata-qemu"},
		&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "gpu"}, Handler: "nvidia"},
		pod("in", "plain"),
		pod("in", "optout", func(p *corev1.Pod) { p.Labels[enrol.Label] = "disabled" }),
		pod("out", "optin", func(p *corev1.Pod) { p.Labels[enrol.Label] = "enabled" }),
		pod("out", "left"),
		pod("in", "elsewhere", elsewhere),
		pod("in", "host", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		pod("in", "done", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("in", "new", func(p *corev1.Pod) { p.Status.PodIPs = nil }),
		pod("in", "kata", class("safe")), pod("in", "gpu", class("gpu")), pod("in", "unknown", class("absent")),
		pod("in", "six", func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "fd00:7ac1::1"}} }),
		pod("in", "static", func(p *corev1.Pod) { p.Annotations["kubernetes.io/config.hash"] = "0123456789abcdef0123456789abcdef" }),
	)
	got := r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	captured, refused := map[string]bool{}, []string{}
	for name, p := range got {
		captured[name] = p.Capture
		if p.Refused != "" {
			refused = append(refused, name)
		}
	}
	want := map[string]bool{
		"plain": true, "optout": false, "optin": true, "left": false, "kata": false, "gpu": true, "unknown": false, "six": true, "static": true,
	}
	if diff := cmp.Diff(want, captured); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	if len(refused) != 2 || got["kata"].Refused == "" || got["unknown"].Refused == "" {
		t.Errorf("refused are %v, want kata and unknown", refused)
	}
	if p := got["static"]; p.UID != "uid-static" || p.RuntimeUID != "0123456789abcdef0123456789abcdef" {
		t.Errorf("the static pod is %s for the API and %s for the runtime", p.UID, p.RuntimeUID)
	}
}

// Labels and annotations count as soon as they change.
func TestChanges(t *testing.T) {
	r := start(t, namespace("shop", ""), pod("shop", "web"))
	r.await(t, "left alone", func(p map[string]pods.Pod) bool { return !p["web"].Capture })
	change := func(o runtime.Object) {
		t.Helper()
		var err error
		switch o := o.(type) {
		case *corev1.Namespace:
			_, err = r.client.CoreV1().Namespaces().Update(t.Context(), o, metav1.UpdateOptions{})
		case *corev1.Pod:
			_, err = r.client.CoreV1().Pods(o.Namespace).Update(t.Context(), o, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(namespace("shop", "enabled"))
	r.await(t, "captured", func(p map[string]pods.Pod) bool { return p["web"].Capture })
	change(pod("shop", "web", func(p *corev1.Pod) { p.Annotations["tacit.mesh/skip-inbound-ports"] = "5432" }))
	r.await(t, "with a skip", func(p map[string]pods.Pod) bool { return p["web"].Skips.Inbound.Contains(5432) })
	change(pod("shop", "web", func(p *corev1.Pod) { p.Annotations["tacit.mesh/skip-inbound-ports"] = "none" }))
	r.await(t, "with a fault", func(p map[string]pods.Pod) bool { return len(p["web"].Faults) == 1 && p["web"].Capture })
	change(namespace("shop", ""))
	r.await(t, "left alone again", func(p map[string]pods.Pod) bool { return !p["web"].Capture })
	if err := r.client.CoreV1().Pods("shop").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "gone", func(p map[string]pods.Pod) bool { return len(p) == 0 })
}

// A permission that is missing is named; a class that cannot be read concerns
// its pods alone.
func TestForbidden(t *testing.T) {
	client := fake.NewClientset(namespace("in", "enabled"), pod("in", "plain"), pod("in", "gpu", class("gpu")))
	client.PrependReactor("list", "runtimeclasses", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Group: "node.k8s.io", Resource: "runtimeclasses"}, "", nil)
	})
	r := startWith(t, client)
	got := r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	if !got["plain"].Capture || got["gpu"].Capture || got["gpu"].Refused == "" {
		t.Errorf("got %+v, want plain alone captured", got)
	}
	entries := r.logs.All()
	if len(entries) == 0 || !strings.Contains(entries[0].ContextMap()["error"].(string), "may not list and watch runtimeclasses.node.k8s.io; add that to its ClusterRole") {
		t.Errorf("the log says %v", entries)
	}
}

// What the CNI plugin says of a pod holds until the API says more.
func TestEnrol(t *testing.T) {
	client := kubetest.ShowDeletions(fake.NewClientset(namespace("in", "enabled"), namespace("out", ""), pod("out", "left")))
	answer := make(chan struct{})
	client.PrependReactor("list", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
		<-answer
		return false, nil, nil
	})
	r := startWith(t, client)
	box := func(name string) Sandbox {
		return Sandbox{Namespace: "in", Name: name, UID: "uid-" + name, Container: "c1", NetNS: "/run/netns/" + name, Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.9")}}
	}
	if _, err := r.Enrol(t.Context(), box("web")); err == nil {
		t.Error("enrolled by a source that has read nothing")
	}
	close(answer)
	r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	left := box("left")
	left.Namespace = "out"
	for name, b := range map[string]Sandbox{"left alone": left, "unknown": box("unknown")} {
		if p, err := r.Enrol(t.Context(), b); err != nil || p.Capture {
			t.Errorf("%s: captured %v, %v", name, p.Capture, err)
		}
	}
	fresh := pod("in", "web", func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} })
	if _, err := r.client.CoreV1().Pods("in").Create(t.Context(), fresh, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		p, err := r.Enrol(context.Background(), box("web"))
		if err == nil && (!p.Capture || p.UID != "uid-web") {
			t.Errorf("got %+v", p)
		}
		done <- err
	}()
	got := r.await(t, "with what the plugin said", func(p map[string]pods.Pod) bool { return p["web"].NetNS != "" })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if a := got["web"].Addresses; len(a) != 1 || a[0] != netip.MustParseAddr("198.18.0.9") {
		t.Errorf("its addresses are %v", a)
	}
	r.Leave("another container")
	r.Leave("c1")
	r.await(t, "without its sandbox", func(p map[string]pods.Pod) bool { return len(p) == 1 })
}

// A pod that gets another sandbox, as when its processes were killed, is where
// that one is, though the API says until it is ready where the pod was before.
func TestAnotherSandbox(t *testing.T) {
	before, now := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.9")
	r := start(t, namespace("in", "enabled"), pod("in", "web"))
	at := func(address netip.Addr, path string) func(map[string]pods.Pod) bool {
		return func(p map[string]pods.Pod) bool {
			return p["web"].NetNS == path && slices.Equal(p["web"].Addresses, []netip.Addr{address})
		}
	}
	r.await(t, "where the API says", at(before, ""))
	for _, box := range []Sandbox{
		{Container: "c1", NetNS: "/run/netns/1", Addresses: []netip.Addr{before}},
		{Container: "c2", NetNS: "/run/netns/2", Addresses: []netip.Addr{now}},
	} {
		box.Namespace, box.Name, box.UID = "in", "web", "uid-web"
		done := make(chan error, 1)
		go func() {
			_, err := r.Enrol(context.Background(), box)
			done <- err
		}()
		r.await(t, "where the plugin says", at(box.Addresses[0], box.NetNS))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	r.Leave("c1") // which the runtime says late
	later := pod("in", "web", func(p *corev1.Pod) { p.Status.PodIPs[0].IP = now.String() })
	if _, err := r.client.CoreV1().Pods("in").Update(t.Context(), later, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Leave("c2")
	r.await(t, "where the API says now", at(now, ""))
}

// What is known of a sandbox ends with the next one of the pod, also of a pod
// that is left alone by then, and if the runtime never said that it has gone.
func TestAnotherSandboxLeftAlone(t *testing.T) {
	now := netip.MustParseAddr("198.18.0.9")
	r := start(t, namespace("in", "enabled"), pod("in", "web"))
	captured := func(want bool, path string) func(map[string]pods.Pod) bool {
		return func(p map[string]pods.Pod) bool { return p["web"].Capture == want && p["web"].NetNS == path }
	}
	box := func(container string) Sandbox {
		return Sandbox{Namespace: "in", Name: "web", UID: "uid-web", Container: container, NetNS: "/run/netns/" + container, Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.1")}}
	}
	update := func(label string) {
		p := pod("in", "web", func(p *corev1.Pod) { p.Labels[enrol.Label], p.Status.PodIPs[0].IP = label, now.String() })
		if _, err := r.client.CoreV1().Pods("in").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r.await(t, "before any sandbox", captured(true, ""))
	done := make(chan error, 1)
	go func() {
		_, err := r.Enrol(context.Background(), box("c1"))
		done <- err
	}()
	r.await(t, "in the first", captured(true, "/run/netns/c1"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	update("disabled")
	r.await(t, "left alone", captured(false, "/run/netns/c1"))
	if p, err := r.Enrol(t.Context(), box("c2")); err != nil || p.Capture {
		t.Fatalf("captured %v, %v", p.Capture, err)
	}
	update("enabled")
	got := r.await(t, "captured again", func(p map[string]pods.Pod) bool { return p["web"].Capture })
	if p := got["web"]; p.NetNS != "" || !slices.Equal(p.Addresses, []netip.Addr{now}) {
		t.Errorf("it is in %q, at %v, as if it were in its first sandbox", p.NetNS, p.Addresses)
	}
}

// The proxy is known by its pod, whatever another process says of itself.
func TestCheckProxy(t *testing.T) {
	const uid, other = "3f1d7c9a-0b1e-4c55-9d64-0a3f5f0e8b11", "8a6d2c1b-1111-4222-8333-444455556666"
	account := func(uid, name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.UID, p.Spec.ServiceAccountName = types.UID(uid), name }
	}
	r := start(t, pod("tacit-system", "proxy", account(uid, "tacit-proxy")), pod("tacit-system", "agent", account(other, "tacit-agent")),
		pod("shop", "proxy", account("11111111-1111-4222-8333-444455556666", "tacit-proxy")))
	r.drain(t)
	if err := r.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	check := r.CheckProxy("tacit-system")
	for group, want := range map[string]string{
		"/kubepods/pod" + uid + "/c":                          "",
		"/kubepods/pod" + other + "/c":                        "none of the service account tacit-system/tacit-proxy",
		"/kubepods/pod11111111-1111-4222-8333-444455556666/c": "none of the service account",
		"/kubepods/pod" + other + "/c/pod" + uid:              "none of the service account",
		"/user.slice/session-1.scope":                         "in no pod",
	} {
		err := check("0::" + group + "\n")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", group, err, want)
		}
	}
}

func TestStrip(t *testing.T) {
	p := pod("in", "web", func(p *corev1.Pod) {
		p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
		p.Annotations[corev1.LastAppliedConfigAnnotation] = "long"
		p.Spec.Containers = []corev1.Container{{Name: "a", Image: "i"}, {Name: "b", Image: "i", LivenessProbe: &corev1.Probe{}}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v"}}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d", UID: "u"}}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "a", Image: "i", ImageID: "i@1", ContainerID: "c", Ready: true, RestartCount: 3}}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "first", Image: "i", Ready: true}}
	})
	got, err := strip(p)
	if err != nil {
		t.Fatal(err)
	}
	want := pod("in", "web", func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Name: "b", LivenessProbe: &corev1.Probe{}}}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d", UID: "u"}}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "a", Image: "i", ImageID: "i@1", ContainerID: "c"}}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "first", Image: "i"}}
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
