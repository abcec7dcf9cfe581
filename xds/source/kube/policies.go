package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	typev1beta1 "istio.io/api/type/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/tacit-mesh/tacit/internal/manifests"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/source/security"
)

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// policies follows one kind of policy, for as long as the cluster has it: its
// CustomResourceDefinition may be absent, come later, and go.
type policies struct {
	source *Source
	kind   security.Kind
	batch  *batch

	offers chan offer // the latest only
	listed atomic.Bool

	mu    sync.Mutex
	known map[objectKey]metav1.Object // what was said to be there
	good  map[objectKey]metav1.Object // as it was last read
}

func newPolicies(s *Source, kind security.Kind, b *batch) *policies {
	return &policies{
		source: s, kind: kind, batch: b, offers: make(chan offer, 1),
		known: map[objectKey]metav1.Object{}, good: map[objectKey]metav1.Object{},
	}
}

func (p *policies) resource() string { return p.kind.Resource + "." + p.kind.Group() }

// start follows the definition, and by it the kind. synced says that the
// objects are in, or that there is no such kind.
func (p *policies) start(ctx context.Context, group *errgroup.Group) (cache.InformerSynced, error) {
	informer := dynamicinformer.NewFilteredDynamicInformer(p.source.Dynamic, crds, metav1.NamespaceAll, 0, nil, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, p.resource()).String()
	}).Informer()
	r := &reader{source: p.source, resource: "customresourcedefinitions/" + p.resource(), set: p.defined, gone: p.undefined}
	synced, err := r.start(ctx, group, informer)
	if err != nil {
		return nil, err
	}
	group.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), synced) {
			return ctx.Err()
		}
		return p.follow(ctx)
	})
	return p.listed.Load, nil
}

// offer is what the cluster has of the kind.
type offer struct {
	there   bool
	version string // to read; "" while there is none
}

func (p *policies) defined(o metav1.Object) {
	if o.GetName() == p.resource() {
		p.tell(offer{true, served(p.kind, o.(*unstructured.Unstructured))})
	}
}

func (p *policies) undefined(o metav1.Object) {
	if o.GetName() == p.resource() {
		p.tell(offer{})
	}
}

func (p *policies) tell(o offer) {
	select {
	case <-p.offers: // only the events of one informer come here
	default:
	}
	p.offers <- o
}

// served is the version of an established definition to read; "" if there is
// none yet.
func served(kind security.Kind, crd *unstructured.Unstructured) string {
	if !hasCondition(crd, "Established") {
		return ""
	}
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	var names []string
	for _, v := range versions {
		version, ok := v.(map[string]any)
		if name, _ := version["name"].(string); ok && version["served"] == true {
			names = append(names, name)
		}
	}
	for _, name := range kind.Versions() {
		if slices.Contains(names, name) {
			return name
		}
	}
	return ""
}

func hasCondition(u *unstructured.Unstructured, name string) bool {
	for _, c := range conditionsOf(u) {
		if c["type"] == name {
			return c["status"] == string(metav1.ConditionTrue)
		}
	}
	return false
}

func conditionsOf(u *unstructured.Unstructured) (out []map[string]any) {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range list {
		if c, ok := c.(map[string]any); ok {
			out = append(out, c)
		}
	}
	return out
}

// follow reads whichever version there is. A definition that is there without
// one may hide policies: what is known of them stays, and what is not is waited
// for, but not if they are other people's limits.
func (p *policies) follow(ctx context.Context) error {
	version, stop := "", func() {}
	defer func() { stop() }()
	var now offer
	select { // the definition's own first list is in
	case now = <-p.offers:
	default:
	}
	for {
		switch {
		case !now.there:
			if stop(); version != "" {
				p.source.Log.Warn("the cluster no longer has this kind of policy", zap.String("resource", p.resource()))
			}
			version, stop = "", func() {}
			p.source.keep(p, nil)
			p.prune(nil)
			p.listed.Store(true)
		case now.version == "":
			p.source.Log.Warn("no version of this kind of policy is served that is read here", zap.String("resource", p.resource()), zap.Strings("read", p.kind.Versions()))
			p.listed.Store(p.listed.Load() || p.kind.Lenient)
		case now.version != version:
			stop()
			var err error
			if version, stop, err = p.run(ctx, now.version); err != nil {
				return err
			}
		}
		select {
		case now = <-p.offers:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run lets an informer run until stop is called.
func (p *policies) run(ctx context.Context, version string) (running string, stop func(), err error) {
	gvr := schema.GroupVersionResource{Group: p.kind.Group(), Version: version, Resource: p.kind.Resource}
	informer := dynamicinformer.NewFilteredDynamicInformer(p.source.Dynamic, gvr, metav1.NamespaceAll, 0, nil, nil).Informer()
	ctx, cancel := context.WithCancel(ctx)
	group := &errgroup.Group{}
	stop = func() {
		cancel()
		_ = group.Wait()
	}
	r := &reader{source: p.source, resource: p.resource(), set: p.set, gone: p.gone}
	synced, err := r.start(ctx, group, informer)
	if err != nil {
		return "", stop, err
	}
	group.Go(func() error {
		if cache.WaitForCacheSync(ctx.Done(), synced) {
			p.prune(informer.GetStore())
			p.listed.Store(true)
		}
		return nil
	})
	p.source.Log.Info("reading policies", zap.String("resource", p.resource()), zap.String("version", version))
	p.source.keep(p, &stored{gvr, informer.GetStore()})
	return version, stop, nil
}

// prune lets go of objects that went while nobody looked; without a store, of
// all.
func (p *policies) prune(store cache.Store) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.known {
		if store != nil {
			if _, there, _ := store.GetByKey(o.GetNamespace() + "/" + o.GetName()); there {
				continue
			}
		}
		p.forget(o)
	}
}

func (p *policies) gone(o metav1.Object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(o)
}

func (p *policies) forget(o metav1.Object) {
	key := keyOf(o)
	delete(p.known, key)
	delete(p.good, key)
	p.batch.problem(p.problem(o, nil))
	p.batch.gone(p.kind.Closed(metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName()}, nil))
}

func (p *policies) problem(o metav1.Object, err error) build.Problem {
	return build.Problem{Kind: p.kind.Kind.Kind, Namespace: o.GetNamespace(), Name: o.GetName(), Err: err}
}

func (p *policies) set(o metav1.Object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u, key := o.(*unstructured.Unstructured), keyOf(o)
	object, err := p.decode(u)
	switch last := p.good[key]; {
	case err == nil:
		p.good[key] = object
	case last != nil:
		object = last
		err = fmt.Errorf("%s: its last good version, of generation %d, stays in force", security.Describe(err), last.GetGeneration())
	default:
		object = p.kind.Closed(meta(u), selector(u))
		err = fmt.Errorf("%s: until that is mended everything is denied that it may be about", security.Describe(err))
	}
	p.known[key] = u
	p.batch.problem(p.problem(u, err))
	p.batch.set(object)
}

func (p *policies) decode(u *unstructured.Unstructured) (metav1.Object, error) {
	text, err := json.Marshal(map[string]any{
		"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "spec": u.Object["spec"],
		"metadata": map[string]any{"name": u.GetName(), "namespace": u.GetNamespace()},
	})
	if err != nil {
		return nil, err
	}
	d, err := manifests.FromJSON(text)
	if err != nil {
		return nil, err
	}
	value, err := p.kind.Decode(d)
	if err != nil {
		return nil, err
	}
	object, ok := value.(interface {
		metav1.Object
		metav1.ObjectMetaAccessor
	})
	if !ok {
		return nil, errors.New("not an object")
	}
	*object.GetObjectMeta().(*metav1.ObjectMeta) = meta(u)
	return object, nil
}

// meta is what matters of the metadata; it was checked by the API server.
func meta(u *unstructured.Unstructured) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(), Generation: u.GetGeneration(),
		CreationTimestamp: u.GetCreationTimestamp(), Annotations: u.GetAnnotations(),
	}
}

// selector is that of a specification that cannot be read as a whole; nil,
// which is everything, if it cannot be read either.
func selector(u *unstructured.Unstructured) *typev1beta1.WorkloadSelector {
	spec, _ := u.Object["spec"].(map[string]any)
	text, err := json.Marshal(spec["selector"])
	out := &typev1beta1.WorkloadSelector{}
	if err != nil || spec["selector"] == nil || protojson.Unmarshal(text, out) != nil {
		return nil
	}
	return out
}
