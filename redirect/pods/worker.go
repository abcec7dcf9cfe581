package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/redirect/netns"
)

const (
	stepTimeout  = 30 * time.Second
	firstRetry   = 100 * time.Millisecond
	lastRetry    = 5 * time.Second
	watchEvery   = time.Second // the kernel does not announce the end of a namespace
	releaseEvery = time.Second
	// announceTimeout bounds what the API's answer to one pod may take, so
	// that its rules are looked after meanwhile.
	announceTimeout = 5 * time.Second
)

// wish is what is wanted of a pod.
type wish struct {
	pod     Pod
	dropped bool // the pod is on the list no more
	taken   bool // and another one has its namespace
}

// worker looks after one pod.
type worker struct {
	set   *Set
	after <-chan struct{} // closed when the namespace is free; nil if it is
	kick  chan struct{}   // holds one token when something is new
	tried chan struct{}   // closed after the first attempt
	done  chan struct{}   // closed by Set.forget

	mu     sync.Mutex
	wish   wish
	status Status

	// The rest belongs to run alone.
	path    string // by which the namespace was found
	ns      *netns.NS
	place   *place
	applied wish
	checked time.Time // when the capture was last found or put in order
	facts   string    // those that the namespace was verified against
	idle    int       // looks in a row that found no captured connection
	failing time.Time // since when every attempt has failed; zero if the last has not
	told    map[Problem]time.Time
}

func newWorker(s *Set, p Pod) *worker {
	return &worker{
		set:    s,
		kick:   make(chan struct{}, 1),
		tried:  make(chan struct{}),
		done:   make(chan struct{}),
		wish:   wish{pod: p},
		status: Status{Pod: p, State: StatePending},
		told:   map[Problem]time.Time{},
	}
}

// log names the pod. It is made when there is something to say, as each of its
// kind has a buffer of its own.
func (w *worker) log() *zap.Logger {
	p := w.wished().pod
	return w.set.cfg.Log.With(zap.String("pod", p.Namespace+"/"+p.Name), zap.String("uid", p.UID))
}

// wants says what is wanted now.
func (w *worker) wants(next wish) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if reflect.DeepEqual(w.wish, next) {
		return
	}
	w.wish, w.status.Pod, w.status.Settled = next, next.pod, false
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *worker) drop(taken bool) {
	next := w.wished()
	next.dropped, next.taken = true, taken
	w.wants(next)
}

func (w *worker) wished() wish {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wish
}

func (w *worker) wasTried() bool {
	select {
	case <-w.tried:
		return true
	default:
		return false
	}
}

func (w *worker) getStatus() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// run goes on until the pod is dropped and nothing of ours is left of it, or
// the context ends.
func (w *worker) run(ctx context.Context) {
	tried := sync.OnceFunc(func() { close(w.tried) })
	defer tried()
	defer w.closeNS()
	if w.after != nil {
		select {
		case <-w.after:
		case <-ctx.Done():
			return
		}
	}
	retry := firstRetry
	for {
		result := w.attempt(ctx)
		if ctx.Err() != nil || result.finished {
			return
		}
		pause := result.pause
		if result.failed {
			pause, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		tried()
		if w.wait(ctx, pause) {
			retry = firstRetry
		}
	}
}

// result is what came of an attempt.
type result struct {
	finished bool
	failed   bool
	pause    time.Duration // until the next, if it has not failed
}

// attempt is a step on a goroutine of its own: the stack that it needs ends with
// it, and that of the worker, which waits for as long as the pod lives, stays
// small.
func (w *worker) attempt(ctx context.Context) result {
	done := make(chan result)
	go func() {
		want := w.wished()
		finished, pause, err := w.step(ctx, want)
		if ctx.Err() == nil && !finished {
			w.report(want, err)
		}
		done <- result{finished, err != nil, pause}
	}()
	return <-done
}

// wait reports whether something is new. A pause of 0 has no end of its own.
func (w *worker) wait(ctx context.Context, pause time.Duration) bool {
	var timer <-chan time.Time
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-w.kick:
		return true
	case <-timer:
	case <-ctx.Done():
	}
	return false
}

// step brings the pod nearer to what is wanted.
func (w *worker) step(ctx context.Context, want wish) (finished bool, pause time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if w.ns != nil && !w.stillThere(want.pod) {
		w.gone(ctx)
	}
	switch {
	case want.taken: // what is there is the successor's now
		w.forget(ctx, want.pod.UID, true)
		return true, 0, nil
	case want.pod.Capture && !want.dropped:
		return false, watchEvery, w.capture(ctx, want)
	}
	left, err := w.release(ctx, want)
	if left {
		return want.dropped, 0, err
	}
	return false, releaseEvery, err
}

// gone follows the end of the pod's network namespace.
func (w *worker) gone(ctx context.Context) {
	w.log().Info("the pod's network namespace is gone")
	w.forget(ctx, w.wished().pod.UID, true)
	w.closeNS()
	w.setState(StatePending)
}

// forget ends what is kept for the pod outside its namespace.
func (w *worker) forget(ctx context.Context, uid string, gone bool) {
	w.set.cfg.Sockets.Remove(uid, gone)
	if err := w.probe(ctx, uid, nil); err != nil { // tried again with the next check of the node
		w.log().Warn("probes of a pod that is captured no more", zap.Error(err))
	}
}

func (w *worker) setState(s State) {
	w.mu.Lock()
	was := w.status.State
	w.status.State = s
	w.mu.Unlock()
	if was != s {
		w.log().Info("pod "+string(s), zap.String("was", string(was)))
	}
	w.set.statusChanged()
}

// capture makes sure that the pod's traffic comes to the proxy, and that peers
// know. Listeners come first, so that the first redirected connection finds
// one; what leads connections to them comes last.
func (w *worker) capture(ctx context.Context, want wish) error {
	if err := w.retell(want); err != nil {
		return err
	}
	same := reflect.DeepEqual(w.applied, want)
	if !same || time.Since(w.checked) >= w.set.cfg.Check {
		if err := w.ensure(ctx, want, same); err != nil {
			return err
		}
	}
	return w.announce(ctx, want.pod, true)
}

// ensure puts everything in place. What it finds missing was there before if
// the wish is the same.
func (w *worker) ensure(ctx context.Context, want wish, same bool) error {
	if err := w.open(want.pod); err != nil {
		return err
	}
	if err := w.verify(want.pod); err != nil {
		return err
	}
	if err := w.endDNS(ctx, want.pod); err != nil {
		return err
	}
	if err := w.set.cfg.Sockets.Add(want.pod.Pod, w.ns); err != nil {
		return fmt.Errorf("make listeners: %w", err)
	}
	if err := w.probe(ctx, want.pod.UID, targets(want.pod)); err != nil {
		return err
	}
	changes, err := w.place.capture(ctx, want.pod)
	if err != nil {
		return err
	}
	if same && len(changes) > 0 {
		w.set.repairs.Add(1)
		w.log().Warn("capture had been changed by others, and was repaired", zap.Strings("changes", changes))
	}
	w.applied, w.checked, w.idle = want, time.Now(), 0
	w.mu.Lock()
	w.status.Uncaptured, w.status.NetNS = w.place.uncaptured(), w.ns.ID()
	w.mu.Unlock()
	w.setState(StateCaptured)
	return nil
}

// verify makes sure that this namespace is that pod's: who holds the pod's
// addresses gets its identity. It stays the pod's whatever becomes of these;
// others may come later, as with a plugin that attaches further interfaces
// after the first.
func (w *worker) verify(p Pod) error {
	facts := fmt.Sprint(w.ns.ID(), p.Addresses)
	gap, err := checkAddresses(w.ns, p.Addresses)
	if err != nil {
		if w.facts == facts {
			return nil
		}
		return err
	}
	w.facts = facts
	w.mu.Lock()
	w.status.Gap = gap
	w.mu.Unlock()
	return nil
}

// release lets a pod go without cutting a connection: nothing new is
// captured, and what carries live connections stays until the last has ended.
func (w *worker) release(ctx context.Context, want wish) (left bool, err error) {
	state := w.getStatus().State
	if state == StateLeft && w.ns == nil && reflect.DeepEqual(w.applied, want) {
		return true, nil
	}
	if err := w.open(want.pod); errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNamespace) {
		w.leave(ctx, want, true)
		return true, nil
	} else if err != nil {
		return false, err
	}
	if state != StateReleasing {
		found, err := w.place.find(ctx)
		if err != nil {
			return false, err
		}
		if !found {
			w.leave(ctx, want, false)
			return true, nil
		}
		if err := w.startRelease(ctx, want); err != nil {
			return false, err
		}
	}
	n, err := w.place.connections(want.pod.Addresses)
	if err != nil {
		return false, err
	}
	// A connection may be between the listener and conntrack's table: look twice.
	if w.idle++; n > 0 {
		w.idle = 0
	}
	if w.idle < 2 {
		return false, w.place.forgetEnded(want.pod.Addresses)
	}
	w.set.cfg.Sockets.Remove(want.pod.UID, false)
	if err := errors.Join(w.place.forgetQueries(), w.place.clean(ctx)); err != nil {
		return false, err
	}
	w.leave(ctx, want, false)
	return true, nil
}

// startRelease tells peers first: what they still send must be received.
func (w *worker) startRelease(ctx context.Context, want wish) error {
	if !want.dropped {
		if err := w.announce(ctx, want.pod, false); err != nil {
			return err
		}
	}
	// An agent that has just started needs the listeners, too: connections
	// that were captured before it may wait in them.
	err := w.verify(want.pod)
	if err == nil {
		err = w.set.cfg.Sockets.Add(want.pod.Pod, w.ns)
	}
	if err != nil {
		w.log().Warn("captured connections of the pod may break", zap.Error(err))
	}
	if err := w.place.release(ctx); err != nil {
		return err
	}
	w.applied, w.idle = wish{}, 0
	w.setState(StateReleasing)
	return nil
}

func (w *worker) leave(ctx context.Context, want wish, gone bool) {
	w.forget(ctx, want.pod.UID, gone)
	w.closeNS()
	w.applied = want
	w.setState(StateLeft)
}
