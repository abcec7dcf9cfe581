// Package cluster is the source of pods of a node of a Kubernetes cluster, and
// tells the cluster what became of them.
//
// What does not belong here: what happens in the pods (redirect/pods), and the
// rules of who is enrolled (redirect/enrol).
package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	corelisters "k8s.io/client-go/listers/core/v1"
	nodelisters "k8s.io/client-go/listers/node/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
	"github.com/tacit-mesh/tacit/redirect/enrol"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// Config says which pods to read.
type Config struct {
	Client nodeapi.Client
	Reader pods.Reader
	// Enrolled hears which namespaces' labels ask for capture, whenever that
	// has changed; nil if nobody wants to know.
	Enrolled func(namespaces []string)
	// MaxBypass is of a bypass that is accepted.
	MaxBypass time.Duration
	Log       *zap.Logger
}

// Source reads this node's pods from the API, and hears from the CNI plugin of
// those that are just being made.
type Source struct {
	cfg Config

	informers    []cache.SharedIndexInformer
	pods         corelisters.PodLister
	namespaces   corelisters.NamespaceLister
	classes      nodelisters.RuntimeClassLister
	bypasses     cache.Store
	synced       []cache.InformerSynced // of what all pods need
	lesserSynced []cache.InformerSynced // of classes and bypasses
	changed      chan struct{}          // holds one token after a change
	events       *events

	mu        sync.Mutex
	arrived   chan struct{}           // closed and replaced when the list has been read again
	sandboxes map[string]Sandbox      // by the UID that the runtime knows
	announced map[string]announcement // by the pods' UIDs
}

// NewSource makes a source; nothing is read before Run.
func NewSource(cfg Config) (*Source, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Source{cfg: cfg, changed: make(chan struct{}, 1), arrived: make(chan struct{}),
		sandboxes: map[string]Sandbox{}, announced: map[string]announcement{}, events: newEvents(cfg.Client, cfg.Reader.Node, cfg.Log)}
	podInformer, err := watch(s, "pods", &corev1.Pod{}, cfg.Client.Pods(""), s.onThisNode())
	if err != nil {
		return nil, err
	}
	namespaceInformer, err := watch(s, "namespaces", &corev1.Namespace{}, cfg.Client.Namespaces(), metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	classInformer, err := watch(s, "runtimeclasses.node.k8s.io", &nodev1.RuntimeClass{}, cfg.Client.RuntimeClasses(), metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	bypassInformer, err := watch[*bypass.List](s, bypass.Resource+"."+bypass.GroupVersion().Group, &bypass.Bypass{}, optional{cfg.Client.Bypasses()}, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	s.informers = []cache.SharedIndexInformer{podInformer, namespaceInformer, classInformer, bypassInformer}
	s.bypasses = bypassInformer.GetStore()
	s.pods, s.namespaces = corelisters.NewPodLister(podInformer.GetIndexer()), corelisters.NewNamespaceLister(namespaceInformer.GetIndexer())
	s.classes = nodelisters.NewRuntimeClassLister(classInformer.GetIndexer())
	s.synced = []cache.InformerSynced{podInformer.HasSynced, namespaceInformer.HasSynced}
	s.lesserSynced = []cache.InformerSynced{classInformer.HasSynced, bypassInformer.HasSynced}
	return s, nil
}

func (s *Source) onThisNode() metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", s.cfg.Reader.Node).String()}
}

// watch makes the informer of a kind, of those that the options select.
func watch[List runtime.Object](s *Source, what string, example runtime.Object, objects nodeapi.Follow[List], selected metav1.ListOptions) (cache.SharedIndexInformer, error) {
	listWatch := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selected.FieldSelector
			return objects.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
			options.FieldSelector = selected.FieldSelector
			return objects.Watch(ctx, options)
		},
	}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(listWatch, s.cfg.Client), example, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	kick := func() { s.kick() }
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { kick() }, UpdateFunc: func(any, any) { kick() }, DeleteFunc: func(any) { kick() },
	})
	err = errors.Join(err, informer.SetTransform(strip), informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		if apierrors.IsNotFound(err) {
			return // a kind that the cluster does not know yet
		}
		s.cfg.Log.Error("cannot watch "+what+"; it is tried again", zap.Error(explain(err, "list and watch", what)))
	}))
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", what, err)
	}
	return informer, nil
}

func (s *Source) kick() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Run implements [pods.Source]. Nothing is said before pods and namespaces
// have been read whole.
func (s *Source) Run(ctx context.Context, update func([]pods.Pod)) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { s.events.run(ctx) })
	for _, informer := range s.informers {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return ctx.Err()
	}
	s.awaitLesser(ctx)
	var enrolled []string
	for {
		if now := s.enrolled(); s.cfg.Enrolled != nil && (enrolled == nil || !slices.Equal(now, enrolled)) {
			enrolled = now
			s.cfg.Enrolled(now)
		}
		list, err := s.read()
		if err != nil {
			return err
		}
		update(list)
		select {
		case <-s.changed:
		case <-s.known().Next(time.Now().Round(0)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enrolled are the namespaces whose labels ask for capture; never nil.
func (s *Source) enrolled() []string {
	names := []string{}
	all, _ := s.namespaces.List(labels.Everything()) // of a cache: it cannot fail
	for _, n := range all {
		if enrol.Wanted(nil, n.Labels) {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

// awaitLesser waits a moment for runtime classes, since pods of one that is not
// known are not captured, and for bypasses, since an agent that starts during
// one is not to capture its pods.
func (s *Source) awaitLesser(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cache.WaitForCacheSync(ctx.Done(), s.lesserSynced...)
}

// Ready reports whether pods and namespaces have been read.
func (s *Source) Ready() bool {
	for _, synced := range s.synced {
		if !synced() {
			return false
		}
	}
	return true
}

// read is all pods of the node, with what is wanted of each.
func (s *Source) read() ([]pods.Pod, error) {
	all, err := s.pods.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("pods of the node: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	there := map[string]bool{}
	var list []pods.Pod
	for _, p := range all {
		pod := s.describe(p)
		there[pod.UID], there[pod.RuntimeUID] = true, true
		if sandbox, ok := s.sandboxes[pod.RuntimeUID]; ok {
			sandbox.describe(&pod)
		}
		if s.cfg.Reader.Here(p) && len(pod.Addresses) > 0 {
			list = append(list, pod)
		}
	}
	absent := func(uid string) bool { return !there[uid] }
	maps.DeleteFunc(s.sandboxes, func(uid string, _ Sandbox) bool { return absent(uid) })
	maps.DeleteFunc(s.announced, func(uid string, _ announcement) bool { return absent(uid) })
	close(s.arrived)
	s.arrived = make(chan struct{})
	return list, nil
}

// describe says what is wanted of a pod, as the API has it.
func (s *Source) describe(p *corev1.Pod) pods.Pod {
	namespace, err := s.namespaces.Get(p.Namespace)
	if err != nil { // it comes, or the pod goes
		namespace = &corev1.Namespace{}
	}
	pod := s.cfg.Reader.Read(p, namespace)
	if pod.Capture {
		pod.Refused = s.refusal(p)
		pod.Capture = pod.Refused == ""
	}
	s.known().Apply(&pod, time.Now().Round(0))
	return pod
}

// sandboxed are names, or parts of names, of runtimes whose applications have
// a network stack of their own: rules in the pod's network namespace would
// never see their traffic.
var sandboxed = []string{"kata", "gvisor", "runsc", "firecracker", "krun", "quark"}

// refusal says why the pod cannot be captured; "" if it can.
func (s *Source) refusal(p *corev1.Pod) string {
	if p.Spec.RuntimeClassName == nil || *p.Spec.RuntimeClassName == "" {
		return ""
	}
	name := *p.Spec.RuntimeClassName
	class, err := s.classes.Get(name)
	if err != nil {
		return fmt.Sprintf("its runtime class %s cannot be read (%v), and so may keep its traffic in a sandbox", name, err)
	}
	for _, part := range sandboxed {
		if strings.Contains(strings.ToLower(class.Handler), part) {
			return fmt.Sprintf("its runtime class %s (handler %s) keeps its traffic in a sandbox, where it cannot be captured", name, class.Handler)
		}
	}
	return ""
}
