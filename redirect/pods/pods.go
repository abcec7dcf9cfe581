// Package pods brings the pods of a node to what is wanted of each: captured,
// with rules, routes and listeners in its network namespace, or left alone,
// without a trace.
//
// Where the list of pods comes from is a [Source]'s business. What does not
// belong here: the text of rules (redirect/rules), sockets (redirect/handoff),
// and any byte of a connection.
package pods

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Pod is a pod of this node and what is wanted of it.
type Pod struct {
	handoff.Pod
	NetNS string // path of its network namespace; empty if Config.Locate has to find it
	// RuntimeUID is by what UID the node's container runtime knows the pod:
	// another one than the API for static pods.
	RuntimeUID string
	Capture    bool // false: to be let go, if it ever was captured
	// Refused says why a pod that asks for it is not captured; empty if it
	// is, or does not ask.
	Refused string
	// Bypass says which bypass is in force for the pod; empty if none is.
	Bypass string
	Skips  model.Skips
	// DNSServers are those to which the pod's queries are captured.
	DNSServers []netip.Addr
	Probes     model.PortSet // ports by which the node looks after the pod
	Faults     []string      // what of its labels and annotations is not in force, and why
}

// Source tells which pods there are.
type Source interface {
	// Run calls update with the whole list, and again whenever it changes,
	// until the context ends.
	Run(ctx context.Context, update func([]Pod)) error
}

// Sockets keeps the pods' listeners and hands them to the proxy.
type Sockets interface {
	// Add gives the pod listeners, unless it has them, and tells the proxy.
	Add(handoff.Pod, *netns.NS) error
	// Keep says that the pod is there, before it is known what becomes of it:
	// the proxy keeps what it has of it until Remove.
	Keep(uid string)
	// Remove takes them away; gone says that the pod itself has ended.
	Remove(uid string, gone bool)
	// Synced says that every pod there is has been added, kept or removed.
	Synced()
}

// Config says how pods are captured.
type Config struct {
	Sockets Sockets
	Backend Backend
	// Node is the path of the node's own network namespace, from which the
	// kubelet probes pods; nothing does if it is empty.
	Node string
	// Locate finds the path of a pod's network namespace, which is
	// fs.ErrNotExist if there is none; nil takes [Pod].NetNS.
	Locate func(Pod) (path string, err error)
	// Announce tells peers whether the pod is captured, unless they know.
	// Nil if they learn it in another way. That the pod is gone is no error.
	Announce func(ctx context.Context, p Pod, captured bool) error
	// Report tells the pod's owner what is wrong with it; nil is nobody.
	Report func(Pod, Problem)
	// Check is the time between two looks for drift; 0 is 15 s.
	Check time.Duration
	Log   *zap.Logger
}

// State is where a pod is in its life.
type State string

// The states. A pod with an error stays in the state that it had.
const (
	StatePending   State = "pending"   // to be captured
	StateCaptured  State = "captured"  // rules and listeners are in place
	StateReleasing State = "releasing" // nothing new is captured, but connections that were live on
	StateLeft      State = "left"      // not captured, nothing of ours is there
)

// Status is what became of a pod.
type Status struct {
	Pod     Pod // as wanted
	State   State
	NetNS   netns.ID // the namespace that is captured, if one is
	Settled bool     // everything is as wanted
	Err     error    // of the last attempt, nil if it succeeded
	// Gap says what of the pod cannot be captured faithfully; empty if
	// nothing.
	Gap string
	// Uncaptured counts flows of other protocols than TCP, which pass.
	Uncaptured uint64
}

// Set is the pods of the node. Each is looked after on its own: one that is
// stuck holds up no other.
type Set struct {
	cfg     Config
	node    *node         // nil if nothing probes the pods
	updated chan struct{} // holds one token after an Update
	repairs atomic.Uint64

	mu      sync.Mutex
	wanted  []Pod
	workers map[string]*worker
	changed chan struct{} // closed and replaced when the status of a pod has changed
	synced  bool
}

// New makes a set; nothing happens before Run.
func New(cfg Config) *Set {
	if cfg.Check == 0 {
		cfg.Check = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Set{cfg: cfg, updated: make(chan struct{}, 1), workers: map[string]*worker{}, changed: make(chan struct{})}
	if cfg.Node != "" {
		s.node = newNode(cfg.Node, cfg.Backend)
	}
	return s
}

// Update says which pods there are, all of them. Those missing are let go.
func (s *Set) Update(pods []Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = slices.Clone(pods)
	select {
	case s.updated <- struct{}{}:
	default:
	}
}

// Run brings pods to what is wanted and keeps them there, until the context
// ends. Then everything stays as it is, so that a successor goes on.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if s.node != nil {
		defer s.node.close()
		wg.Go(func() { s.watchNode(ctx) })
	}
	defer wg.Wait()
	first := true
	for {
		select {
		case <-s.updated:
		case <-ctx.Done():
			return ctx.Err()
		}
		started := s.apply(ctx, &wg, first)
		if first {
			first = false
			tried := make(chan struct{})
			wg.Go(func() { awaitTried(ctx, started); close(tried) })
			wg.Go(func() { s.sync(ctx, started, tried) })
		}
	}
}

// awaitTried waits until each worker has tried once.
func awaitTried(ctx context.Context, workers []*worker) {
	for _, w := range workers {
		select {
		case <-w.tried:
		case <-ctx.Done():
			return
		}
	}
}

// sync says that all pods are known, once the first have been tried. Those that are
// stuck do not keep a new proxy of the others waiting; the probes of the node, which
// they may still need, stay until they have been tried.
func (s *Set) sync(ctx context.Context, started []*worker, tried <-chan struct{}) {
	s.awaitProgress(started, tried)
	if ctx.Err() != nil {
		return
	}
	s.cfg.Sockets.Synced()
	s.mu.Lock()
	s.synced = true
	s.mu.Unlock()
	<-tried
	if s.node != nil && ctx.Err() == nil {
		if err := s.node.synced(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("probes of the node", zap.Error(err))
		}
	}
}

// awaitProgress waits until all have been tried, or none has been for a while.
func (s *Set) awaitProgress(started []*worker, tried <-chan struct{}) {
	tick := time.NewTicker(stuckAfter)
	defer tick.Stop()
	for last := len(started); ; {
		select {
		case <-tried:
			return
		case <-tick.C:
		}
		open := slices.DeleteFunc(slices.Clone(started), (*worker).wasTried)
		if len(open) == last {
			for _, w := range open {
				w.log().Warn("capturing the pod takes long; going on without it")
			}
			return
		}
		last = len(open)
	}
}

// Synced reports whether every pod that there was at the start has been
// captured or left alone, has failed to be once, or has taken too long.
func (s *Set) Synced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

// stuckAfter is how long no further pod of the first has been tried when the others
// count as all.
const stuckAfter = 5 * time.Second

// nodeChecks is how many checks of a pod go by for one of the node, whose
// tables are long.
const nodeChecks = 4

func (s *Set) watchNode(ctx context.Context) {
	tick := time.NewTicker(nodeChecks * s.cfg.Check)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		limited, cancel := context.WithTimeout(ctx, stepTimeout)
		if err := s.node.check(limited); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("probes of the node", zap.Error(err))
		}
		cancel()
	}
}

// apply tells every worker what is wanted, and starts those that lack. What
// proxies have of the first pods, from an agent before this one, is kept.
func (s *Set) apply(ctx context.Context, wg *sync.WaitGroup, first bool) (started []*worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[string]Pod{}
	inUse := map[string]bool{} // namespaces
	for _, p := range s.wanted {
		wanted[p.UID] = p
		inUse[p.NetNS] = p.NetNS != ""
	}
	var before []*worker
	for uid, w := range s.workers {
		if _, ok := wanted[uid]; !ok {
			w.drop(inUse[w.wished().pod.NetNS])
			before = append(before, w)
		}
	}
	for uid, p := range wanted {
		if w, ok := s.workers[uid]; ok {
			w.wants(wish{pod: p})
			continue
		}
		w := newWorker(s, p)
		for _, old := range before { // a pod takes over the namespace of the one before
			if p.NetNS != "" && old.wished().pod.NetNS == p.NetNS {
				w.after = old.done
			}
		}
		s.workers[uid] = w
		started = append(started, w)
		if first {
			s.cfg.Sockets.Keep(uid)
		}
		wg.Go(func() {
			w.run(ctx)
			s.forget(uid, w)
		})
	}
	return started
}

// forget drops a worker that has nothing more to do. If its pod is wanted
// again meanwhile, the next list starts a new one.
func (s *Set) forget(uid string, w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(w.done)
	delete(s.workers, uid)
	if slices.ContainsFunc(s.wanted, func(p Pod) bool { return p.UID == uid }) {
		select {
		case s.updated <- struct{}{}:
		default:
		}
	}
}

// statusChanged wakes who waits for a pod.
func (s *Set) statusChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// AwaitCapture waits until the pod is captured in that very network namespace.
// The error of a context that ends first names what went wrong last.
func (s *Set) AwaitCapture(ctx context.Context, uid string, in netns.ID) error {
	for {
		s.mu.Lock()
		changed := s.changed
		var status Status
		if w, ok := s.workers[uid]; ok {
			status = w.getStatus()
		}
		s.mu.Unlock()
		if status.State == StateCaptured && status.NetNS == in {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if status.Err != nil {
				return fmt.Errorf("%w; the last attempt to capture the pod: %w", ctx.Err(), status.Err)
			}
			return ctx.Err()
		}
	}
}

// Repairs counts how often something of a pod's capture had been changed by
// others and was put in order.
func (s *Set) Repairs() uint64 { return s.repairs.Load() }

// Status lists what became of the pods, by namespace and name.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for _, w := range s.workers {
		all = append(all, w.getStatus())
	}
	slices.SortFunc(all, func(a, b Status) int {
		return strings.Compare(a.Pod.Namespace+"/"+a.Pod.Name, b.Pod.Namespace+"/"+b.Pod.Name)
	})
	return all
}
