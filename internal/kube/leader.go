package kube

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// A leader that does not renew for leaseDuration is taken for dead; it knows
// by itself, and stops, after renewDeadline.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Lead calls lead while this program, known as identity, holds the Lease, one
// of all that name it, until the context ends; it returns the context's error.
// lead must return when its context ends.
func Lead(ctx context.Context, client kubernetes.Interface, namespace, name, identity string, log *zap.Logger, lead func(context.Context)) error {
	var leading turn
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: name,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				leading.take(func() {
					log.Info("leading", zap.String("lease", namespace+"/"+name))
					lead(ctx)
				})
			},
			OnStoppedLeading: func() { log.Info("not leading any more", zap.String("lease", namespace+"/"+name)) },
		},
	})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		leading.begin()
		elector.Run(ctx)
		leading.end()
	}
	return ctx.Err()
}

// turn is one time of leading, which client-go begins in a goroutine of its
// own, maybe only when it is over.
type turn struct {
	mu   sync.Mutex
	open bool
	work sync.WaitGroup
}

func (t *turn) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = true
}

func (t *turn) take(work func()) {
	t.mu.Lock()
	if !t.open {
		t.mu.Unlock()
		return
	}
	t.work.Add(1)
	t.mu.Unlock()
	defer t.work.Done()
	work()
}

// end waits until the work has ended.
func (t *turn) end() {
	t.mu.Lock()
	t.open = false
	t.mu.Unlock()
	t.work.Wait()
}
