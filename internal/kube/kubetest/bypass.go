package kubetest

import (
	"context"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/tacit-mesh/tacit/internal/bypass"
)

// Bypasses are the objects of that kind of a fake API, whose own tracker knows
// only kinds of Kubernetes. The zero value has none.
type Bypasses struct {
	mu       sync.Mutex
	all      map[string]*bypass.Bypass // by String
	watchers []*watch.RaceFreeFakeWatcher
}

// Set creates or changes one.
func (b *Bypasses) Set(one *bypass.Bypass) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.all[one.String()]
	if b.all == nil {
		b.all = map[string]*bypass.Bypass{}
	}
	b.all[one.String()] = one
	for _, w := range b.watchers {
		switch {
		case w.IsStopped():
		case before == nil:
			w.Add(one.DeepCopyObject())
		default:
			w.Modify(one.DeepCopyObject())
		}
	}
}

// List implements nodeapi.Follow.
func (b *Bypasses) List(context.Context, metav1.ListOptions) (*bypass.List, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := &bypass.List{}
	list.ResourceVersion = "1"
	for _, one := range b.all {
		list.Items = append(list.Items, *one.DeepCopyObject().(*bypass.Bypass))
	}
	return list, nil
}

// Watch implements nodeapi.Follow. It begins with what there is, so that
// nothing is missed since a list.
func (b *Bypasses) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := watch.NewRaceFreeFake()
	for _, one := range b.all {
		w.Add(one.DeepCopyObject())
	}
	b.watchers = append(b.watchers, w)
	return w, nil
}
