package kube

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tacit-mesh/tacit/internal/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// candidate takes part in the election until stopped.
type candidate struct {
	leads chan bool // true as it begins, false as it ends
	stop  func()
}

func run(t *testing.T, client *fake.Clientset, name string) *candidate {
	c := &candidate{leads: make(chan bool, 10)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Lead(ctx, client, namespace, "l", name, zap.NewNop(), func(ctx context.Context) {
			c.leads <- true
			<-ctx.Done()
			c.leads <- false
		})
	}()
	c.stop = func() { cancel(); <-done }
	t.Cleanup(c.stop)
	return c
}

func (c *candidate) await(t *testing.T, leads bool) {
	t.Helper()
	select {
	case got := <-c.leads:
		if got != leads {
			t.Fatalf("leads: %v, want %v", got, leads)
		}
	case <-time.After(patience):
		t.Fatalf("it never came to this: leads %v", leads)
	}
}

// One leads at a time; when it stops, which it does only after its work has,
// another one takes over at once.
func TestLead(t *testing.T) {
	client := kubetest.ShowDeletions(fake.NewClientset())
	a := run(t, client, "a")
	a.await(t, true)
	b := run(t, client, "b")
	lease, err := client.CoordinationV1().Leases(namespace).Get(t.Context(), "l", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != "a" || len(b.leads) > 0 {
		t.Fatalf("lease %v, %v", lease, err)
	}
	a.stop()
	a.await(t, false)
	b.await(t, true)
}

// What others do to the ConfigMap is undone.
func TestMaintain(t *testing.T) {
	client := kubetest.ShowDeletions(fake.NewClientset())
	w, err := client.CoreV1().ConfigMaps(namespace).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		news := make(chan struct{})
		_ = Maintain(ctx, client, namespace, "m", func() <-chan struct{} { return news }, func() map[string]string { return map[string]string{"k": "v"} }, zap.NewNop())
	}()
	defer func() { cancel(); <-done }()
	next := func(want watch.EventType) {
		t.Helper()
		select {
		case e := <-w.ResultChan():
			if e.Type != want {
				t.Fatalf("event %s, want %s", e.Type, want)
			}
		case <-time.After(patience):
			t.Fatalf("no event %s", want)
		}
	}
	next(watch.Added)
	if err := client.CoreV1().ConfigMaps(namespace).Delete(t.Context(), "m", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	next(watch.Deleted)
	next(watch.Added)
}
