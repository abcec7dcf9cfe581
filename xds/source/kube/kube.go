// Package kube takes the cluster's objects from the Kubernetes API, and writes
// back to policies whether they are enforced.
//
// What does not belong here: how the API is reached (internal/kube), and what
// the objects lead to (xds/build).
package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

// What changed goes on once nothing has for quiet, but at the latest after
// patience: what one action of a user changes comes as several events.
const (
	quiet    = 10 * time.Millisecond
	patience = 100 * time.Millisecond
)

// Source is a cluster.
type Source struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	Log     *zap.Logger

	mu      sync.Mutex
	readers map[string]*reader // by resource
	kinds   []*policies
	stored  map[string]*stored // kinds of policies
}

// stored are the objects of one kind of policy, as the API has them.
type stored struct {
	resource schema.GroupVersionResource
	objects  cache.Store
}

// Run lists all kinds and watches them until the context ends; it returns the
// context's error. It calls changed with all objects once every kind has been
// listed, then with what changes. The errors are [build.Problem], about
// policies that cannot be read as they are now. Of such a policy the last good
// version stays; where none is known, as after a restart, something stands in
// for it that denies.
func (s *Source) Run(ctx context.Context, changed func(build.Changes, []error)) error {
	s.mu.Lock()
	s.readers, s.kinds, s.stored = map[string]*reader{}, nil, map[string]*stored{}
	s.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	b := newBatch()
	var listed []cache.InformerSynced
	for resource, informer := range s.informers() {
		r := &reader{source: s, resource: resource, set: b.set, gone: b.gone}
		synced, err := r.start(ctx, group, informer)
		if err != nil {
			return err
		}
		listed = append(listed, synced)
	}
	for _, kind := range security.Kinds() {
		p := newPolicies(s, kind, b)
		s.mu.Lock()
		s.kinds = append(s.kinds, p)
		s.mu.Unlock()
		synced, err := p.start(ctx, group)
		if err != nil {
			return err
		}
		listed = append(listed, synced)
	}
	group.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), listed...) {
			return ctx.Err()
		}
		return b.run(ctx, changed)
	})
	return group.Wait()
}

// Waiting says which kinds have not been listed yet, and why as far as that is
// known; nothing once all have.
func (s *Source) Waiting() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, resource := range slices.Sorted(maps.Keys(s.readers)) {
		r := s.readers[resource]
		switch {
		case r.synced():
		case r.why != nil:
			out = append(out, resource+": "+r.why.Error())
		default:
			out = append(out, resource)
		}
	}
	for _, p := range s.kinds {
		if s.readers[p.resource()] == nil && len(out) == 0 && !p.listed.Load() {
			out = append(out, fmt.Sprintf("%s: none of its versions is served that are read here (%s)", p.resource(), strings.Join(p.kind.Versions(), ", ")))
		}
	}
	return out
}

// keep remembers where the objects of a kind are; nil that it is no more.
func (s *Source) keep(p *policies, objects *stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored[p.kind.Kind.Kind] = objects; objects == nil {
		delete(s.stored, p.kind.Kind.Kind)
		delete(s.readers, p.resource())
	}
}

// policy is one as the API has it; nil if it is not there.
func (s *Source) policy(kind, namespace, name string) (schema.GroupVersionResource, *unstructured.Unstructured) {
	s.mu.Lock()
	of := s.stored[kind]
	s.mu.Unlock()
	if of == nil {
		return schema.GroupVersionResource{}, nil
	}
	o, there, _ := of.objects.GetByKey(namespace + "/" + name)
	if !there {
		return schema.GroupVersionResource{}, nil
	}
	return of.resource, o.(*unstructured.Unstructured)
}

// informers are those of the kinds that every cluster has.
func (s *Source) informers() map[string]cache.SharedIndexInformer {
	f := informers.NewSharedInformerFactoryWithOptions(s.Client, 0, informers.WithTransform(strip))
	core := f.Core().V1()
	return map[string]cache.SharedIndexInformer{
		"pods":            core.Pods().Informer(),
		"namespaces":      core.Namespaces().Informer(),
		"nodes":           core.Nodes().Informer(),
		"services":        core.Services().Informer(),
		"serviceaccounts": core.ServiceAccounts().Informer(),
		"endpointslices." + discoveryv1.GroupName: f.Discovery().V1().EndpointSlices().Informer(),
	}
}

// reader follows the objects of one resource.
type reader struct {
	source    *Source
	resource  string
	set, gone func(metav1.Object)

	synced cache.InformerSynced
	why    error // of the last attempt, while it is not synced; guarded by the source's mutex
}

// start lets an informer run in the group. What it returns says whether the
// first list has arrived here.
func (r *reader) start(ctx context.Context, group *errgroup.Group, informer cache.SharedIndexInformer) (cache.InformerSynced, error) {
	if err := informer.SetWatchErrorHandlerWithContext(r.failed); err != nil {
		return nil, fmt.Errorf("watch %s: %w", r.resource, err)
	}
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { r.set(o.(metav1.Object)) },
		UpdateFunc: func(_, o any) { r.set(o.(metav1.Object)) },
		DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = t.Obj
			}
			r.gone(o.(metav1.Object))
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", r.resource, err)
	}
	r.synced = handler.HasSynced
	r.source.mu.Lock()
	r.source.readers[r.resource] = r
	r.source.mu.Unlock()
	group.Go(func() error {
		informer.RunWithContext(ctx)
		return nil
	})
	return r.synced, nil
}

// failed is told why a list or a watch ended; the informer tries again.
func (r *reader) failed(_ context.Context, _ *cache.Reflector, err error) {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err), errors.Is(err, context.Canceled):
		return // a watch ends now and then
	case apierrors.IsForbidden(err):
		err = fmt.Errorf("%w: grant tacitd's ServiceAccount the verbs list and watch on %s", err, r.resource)
	}
	r.source.mu.Lock()
	r.why = err
	r.source.mu.Unlock()
	r.source.Log.Error("cannot follow objects of the cluster; what is known of them stays", zap.String("resource", r.resource), zap.Bool("listed", r.synced()), zap.Error(err))
}
