package cluster

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

var web = pods.Pod{Pod: handoff.Pod{Namespace: "in", Name: "web", UID: "uid-web"}}

func (r *running) annotation(t *testing.T) string {
	t.Helper()
	p, err := r.client.CoreV1().Pods("in").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Annotations[Redirection]
}

func (r *running) patches() (n int) {
	for _, a := range r.client.Actions() {
		if a.Matches("patch", "pods/status") {
			n++
		}
	}
	return n
}

func (r *running) lastPatch() (body string) {
	for _, a := range r.client.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok {
			body = string(p.GetPatch())
		}
	}
	return body
}

func TestAnnounce(t *testing.T) {
	r := start(t, namespace("in", "enabled"), pod("in", "web", func(p *corev1.Pod) { p.Annotations["other"] = "stays" }))
	r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	announce := func(captured bool, want string, patches int) {
		t.Helper()
		if err := r.Announce(t.Context(), web, captured); err != nil {
			t.Fatal(err)
		}
		if got := r.annotation(t); got != want || r.patches() != patches {
			t.Errorf("the annotation is %q after %d patches, want %q after %d", got, r.patches(), want, patches)
		}
	}
	another := web
	another.UID = "uid-of-the-one-before"
	if err := r.Announce(t.Context(), another, true); err != nil || r.patches() != 0 {
		t.Errorf("another pod of this name was annotated: %v", err)
	}
	announce(false, "", 0)
	announce(true, "enabled", 1)
	if last := r.lastPatch(); !strings.Contains(last, `"uid":"uid-web"`) {
		t.Errorf("%s would change another pod of this name", last)
	}
	announce(true, "enabled", 1)
	// The watch has not brought the annotation yet: nobody reads the updates.
	announce(false, "", 2)
	p, err := r.client.CoreV1().Pods("in").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || p.Annotations["other"] != "stays" {
		t.Errorf("annotations of others: %v, %v", p.Annotations, err)
	}
}

// What an earlier agent has announced is known, and what others take away
// comes back.
func TestAnnouncedBefore(t *testing.T) {
	r := start(t, namespace("in", "enabled"), pod("in", "web", func(p *corev1.Pod) { p.Annotations[Redirection] = Redirected }))
	r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	r.drain(t)
	if err := r.Announce(t.Context(), web, true); err != nil || r.patches() != 0 {
		t.Errorf("announced again: %v", err)
	}
	if _, err := r.client.CoreV1().Pods("in").Update(t.Context(), pod("in", "web"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "announced again", func() bool {
		if err := r.Announce(t.Context(), web, true); err != nil {
			t.Fatal(err)
		}
		return r.annotation(t) == Redirected
	})
}

func TestWithdraw(t *testing.T) {
	client := fake.NewClientset(pod("in", "web", func(p *corev1.Pod) { p.Annotations[Redirection] = Redirected }), pod("in", "other"))
	s, err := NewSource(Config{Client: kubetest.NodeAPI{Clientset: client}, Reader: pods.Reader{Node: "here"}})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Source: s, client: client}
	if err := r.Withdraw(t.Context()); err != nil || r.annotation(t) != "" || r.patches() != 1 {
		t.Errorf("the annotation is %q after %d patches, %v", r.annotation(t), r.patches(), err)
	}
}

func TestAnnounceForbidden(t *testing.T) {
	client := fake.NewClientset(namespace("in", "enabled"), pod("in", "web"))
	client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods/status"}, "web", errors.New("no"))
	})
	r := startWith(t, client)
	r.await(t, "the first list", func(map[string]pods.Pod) bool { return true })
	if err := r.Announce(t.Context(), web, true); err == nil || !strings.Contains(err.Error(), "may not patch pods/status") {
		t.Errorf("got %v", err)
	}
}

func TestRemoveTaint(t *testing.T) {
	const taint = "tacit.mesh/agent-not-ready"
	other := corev1.Taint{Key: "other", Effect: corev1.TaintEffectNoSchedule}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here", ResourceVersion: "7"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: taint, Effect: corev1.TaintEffectNoExecute}, other}}}
	client := fake.NewClientset(node)
	failures := 1
	client.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		failures--
		return failures >= 0, nil, apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, "here", nil)
	})
	asked := 0
	ready := func() bool { asked++; return asked > 2 }
	if err := RemoveTaint(t.Context(), kubetest.NodeAPI{Clientset: client}, "here", taint, ready, zaptest.NewLogger(t)); err != nil {
		t.Fatal(err)
	}
	got, err := client.CoreV1().Nodes().Get(t.Context(), "here", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{client: client}
	if last := r.lastPatch(); !strings.Contains(last, `"resourceVersion":"7"`) {
		t.Errorf("%s would undo what others have changed meanwhile", last)
	}
	if diff := cmp.Diff([]corev1.Taint{other}, got.Spec.Taints); diff != "" || asked != 3 {
		t.Errorf("asked %d times; taints (-want +got):\n%s", asked, diff)
	}
}
