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
	NetNS   string // path of its network namespace
	Capture bool   // false: to be let go, if it ever was captured
	Skips   model.Skips
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
	// Remove takes them away; gone says that the pod itself has ended.
	Remove(uid string, gone bool)
	// Synced says that every pod there is has been added or has failed to.
	Synced()
}

// Config says how pods are captured.
type Config struct {
	Sockets Sockets
	Backend Backend
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
	Settled bool  // everything is as wanted
	Err     error // of the last attempt, nil if it succeeded
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
	updated chan struct{} // holds one token after an Update
	repairs atomic.Uint64

	mu      sync.Mutex
	wanted  []Pod
	workers map[string]*worker
}

// New makes a set; nothing happens before Run.
func New(cfg Config) *Set {
	if cfg.Check == 0 {
		cfg.Check = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Set{cfg: cfg, updated: make(chan struct{}, 1), workers: map[string]*worker{}}
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
	defer wg.Wait()
	synced := false
	for {
		select {
		case <-s.updated:
		case <-ctx.Done():
			return ctx.Err()
		}
		started := s.apply(ctx, &wg)
		if !synced {
			synced = true
			wg.Go(func() {
				for _, w := range started {
					select {
					case <-w.tried:
					case <-ctx.Done():
						return
					}
				}
				s.cfg.Sockets.Synced()
			})
		}
	}
}

// apply tells every worker what is wanted, and starts those that lack.
func (s *Set) apply(ctx context.Context, wg *sync.WaitGroup) (started []*worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[string]Pod{}
	inUse := map[string]bool{} // namespaces
	for _, p := range s.wanted {
		wanted[p.UID] = p
		inUse[p.NetNS] = true
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
			if old.wished().pod.NetNS == p.NetNS {
				w.after = old.done
			}
		}
		s.workers[uid] = w
		started = append(started, w)
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
