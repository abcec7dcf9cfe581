package sockets

import (
	"context"
	"sync"
)

// feed tells a handler about pods, one call at a time, without keeping the
// connection to the agent waiting. What is not told yet and is overtaken is
// never told, so that it holds no more than there are pods.
type feed struct {
	wake chan struct{} // holds one token while order is not empty

	mu    sync.Mutex
	pods  map[string]*fedPod
	order []fedItem
	first bool // Synced has been called
}

// fedItem is a pod with something to tell, or the end of a first list.
type fedItem struct {
	uid    string
	synced func()
}

type fedPod struct {
	queued bool
	told   bool
	next   *enrolled // nil: to be removed
	gone   bool
	stale  []Listeners // to close once the handler has let go of them
	last   Listeners
}

type enrolled struct {
	pod       Pod
	listeners Listeners
}

func newFeed() *feed {
	return &feed{wake: make(chan struct{}, 1), pods: map[string]*fedPod{}}
}

func (f *feed) add(p Pod, l Listeners) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.enqueue(p.UID)
	if e.last != l {
		if e.last != (Listeners{}) {
			e.stale = append(e.stale, e.last)
		}
		e.last = l
	}
	e.next, e.gone = &enrolled{p, l}, false
}

func (f *feed) remove(uid string, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.enqueue(uid)
	if e.last != (Listeners{}) {
		e.stale = append(e.stale, e.last)
	}
	e.last, e.next, e.gone = Listeners{}, nil, gone
}

func (f *feed) synced(done func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.push(fedItem{synced: done})
}

func (f *feed) enqueue(uid string) *fedPod {
	e, ok := f.pods[uid]
	if !ok {
		e = &fedPod{}
		f.pods[uid] = e
	}
	if !e.queued {
		e.queued = true
		f.push(fedItem{uid: uid})
	}
	return e
}

func (f *feed) push(i fedItem) {
	f.order = append(f.order, i)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run tells until the context ends.
func (f *feed) run(ctx context.Context, h Handler) error {
	for {
		select {
		case <-f.wake:
			for f.tell(h) {
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *feed) tell(h Handler) (more bool) {
	f.mu.Lock()
	if len(f.order) == 0 {
		f.mu.Unlock()
		return false
	}
	i := f.order[0]
	f.order = f.order[1:]
	if i.synced != nil {
		first := !f.first
		f.first = true
		f.mu.Unlock()
		if first {
			h.Synced()
		}
		i.synced()
		return true
	}
	e := f.pods[i.uid]
	e.queued = false
	next, gone, told, stale := e.next, e.gone, e.told, e.stale
	e.stale, e.told = nil, next != nil
	if next == nil {
		delete(f.pods, i.uid)
	}
	f.mu.Unlock()

	switch {
	case next != nil:
		h.Add(next.pod, next.listeners)
	case told:
		h.Remove(i.uid, gone)
	}
	for _, l := range stale {
		l.Close()
	}
	return true
}

// removeAll ends what run has begun.
func (f *feed) removeAll(h Handler) {
	f.mu.Lock()
	uids := make([]string, 0, len(f.pods))
	for uid := range f.pods {
		uids = append(uids, uid)
	}
	f.mu.Unlock()
	for _, uid := range uids {
		f.remove(uid, false)
	}
	for f.tell(h) {
	}
}
