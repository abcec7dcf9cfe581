package kube

import (
	"context"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// Between two writes of the same ConfigMap, so that programs that do not
	// agree on it are no load.
	betweenWrites = 5 * time.Second
	// After a write that failed.
	afterFailure = 10 * time.Second
)

// Maintain keeps data in a ConfigMap, as [KeepConfigMap] does, whenever it
// changes or goes, until the context ends; it returns the context's error. news
// returns a channel that is closed when next data returns something else.
func Maintain(ctx context.Context, client kubernetes.Interface, namespace, name string, news func() <-chan struct{}, data func() map[string]string, log *zap.Logger) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	}))
	changed := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	informer := factory.Core().V1().ConfigMaps().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: notify, UpdateFunc: func(_, o any) { notify(o) }, DeleteFunc: notify,
	}); err != nil {
		return err
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	// What happened before the informer began to look is a change as well.
	synced := informer.HasSyncedChecker().Done()
	for {
		pause := betweenWrites
		fresh := news()
		if err := KeepConfigMap(ctx, client, namespace, name, data()); err != nil && ctx.Err() == nil {
			log.Error("ConfigMap not up to date", zap.String("namespace", namespace), zap.String("name", name), zap.Error(err))
			pause = afterFailure
			notify(nil)
		}
		if err := wait(ctx, pause); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-fresh:
		case <-synced:
			synced = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
