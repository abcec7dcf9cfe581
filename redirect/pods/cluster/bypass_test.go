package cluster

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
	"github.com/tacit-mesh/tacit/redirect/enrol"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// A bypass that the API tells of takes the capture off its pods and gives it
// back, and an agent that starts during one never captures them.
func TestBypass(t *testing.T) {
	own := &kubetest.Bypasses{}
	began := metav1.NewTime(time.Now().Add(-time.Minute))
	until := func(at time.Duration) *metav1.Time { return &metav1.Time{Time: time.Now().Add(at)} }
	b := &bypass.Bypass{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "b"}, Spec: bypass.Spec{Pod: "web", Reason: "why", Since: &began, Until: until(time.Hour)}}
	own.Set(b)
	r := startAgainst(t, kubetest.NodeAPI{
		Clientset: kubetest.ShowDeletions(fake.NewClientset(namespace("shop", enrol.Enabled), pod("shop", "web"), pod("shop", "db"))), Own: own,
	})
	first := <-r.updates
	for _, p := range first {
		if p.Capture != (p.Name == "db") || (p.Bypass == "") != p.Capture {
			t.Errorf("the first word on %s: %+v", p.Name, p)
		}
	}
	ended := b.DeepCopyObject().(*bypass.Bypass)
	ended.Spec.Until = until(-time.Second)
	own.Set(ended)
	r.await(t, "captured once it has ended", func(all map[string]pods.Pod) bool { return all["web"].Capture })
	// By itself, at its time.
	soon := b.DeepCopyObject().(*bypass.Bypass)
	soon.Spec.Until = until(2 * time.Second)
	own.Set(soon)
	r.await(t, "not captured again", func(all map[string]pods.Pod) bool { return !all["web"].Capture && all["web"].Bypass != "" })
	r.await(t, "captured at the end", func(all map[string]pods.Pod) bool { return all["web"].Capture })
	r.await(t, "told of no more", func(all map[string]pods.Pod) bool { return all["web"].Bypass == "" })
}
