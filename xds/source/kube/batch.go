package kube

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/xds/build"
)

// batch collects what happens until somebody takes it. Of each object only
// the last state counts.
type batch struct {
	wake chan struct{} // holds one value while there is something to take

	mu       sync.Mutex
	objects  map[objectKey]change
	problems map[string]build.Problem // by kind, namespace and name; stay until they are mended
}

type objectKey struct {
	kind            reflect.Type
	namespace, name string
}

type change struct {
	object metav1.Object
	gone   bool
}

func newBatch() *batch {
	return &batch{wake: make(chan struct{}, 1), objects: map[objectKey]change{}, problems: map[string]build.Problem{}}
}

func keyOf(o metav1.Object) objectKey {
	return objectKey{reflect.TypeOf(o), o.GetNamespace(), o.GetName()}
}

func (b *batch) set(o metav1.Object)  { b.put(o, change{o, false}) }
func (b *batch) gone(o metav1.Object) { b.put(o, change{o, true}) }

func (b *batch) put(o metav1.Object, c change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects[keyOf(o)] = c
	b.notify()
}

// problem notes what is wrong with an object; no error says that nothing is.
func (b *batch) problem(p build.Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := p.Kind + " " + p.Namespace + "/" + p.Name
	before, had := b.problems[key]
	switch {
	case p.Err == nil && !had, p.Err != nil && had && before.Error() == p.Error():
		return
	case p.Err == nil:
		delete(b.problems, key)
	default:
		b.problems[key] = p
	}
	b.notify()
}

func (b *batch) notify() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *batch) take() (c build.Changes, errs []error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, change := range b.objects {
		if change.gone {
			c.Gone = append(c.Gone, change.object)
		} else {
			c.Set = append(c.Set, change.object)
		}
	}
	clear(b.objects)
	for _, p := range slices.SortedFunc(maps.Values(b.problems), func(x, y build.Problem) int { return strings.Compare(x.Error(), y.Error()) }) {
		errs = append(errs, p)
	}
	return c, errs
}

// run calls changed with what is there, and again with what comes.
func (b *batch) run(ctx context.Context, changed func(build.Changes, []error)) error {
	for {
		select { // what is taken now needs no waking
		case <-b.wake:
		default:
		}
		changed(b.take())
		select {
		case <-b.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := b.settle(ctx); err != nil {
			return err
		}
	}
}

func (b *batch) settle(ctx context.Context) error {
	latest := time.NewTimer(patience)
	defer latest.Stop()
	for {
		select {
		case <-b.wake:
		case <-time.After(quiet):
			return nil
		case <-latest.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
