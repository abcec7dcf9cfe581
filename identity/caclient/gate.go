package caclient

import (
	"context"
	"slices"
	"sync"
)

// gate lets a bounded number of requests through at once; of those that wait,
// the urgent go first, and each kind in the order in which it came.
type gate struct {
	mu      sync.Mutex
	free    int
	urgent  []chan struct{}
	patient []chan struct{}
}

func newGate(n int) *gate { return &gate{free: n} }

func (g *gate) enter(ctx context.Context, urgent bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	queue := &g.patient
	if urgent {
		queue = &g.urgent
	}
	turn := make(chan struct{})
	*queue = append(*queue, turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		g.abandon(queue, turn)
		return ctx.Err()
	}
}

// abandon leaves the queue, or passes on a turn that came at the same moment.
func (g *gate) abandon(queue *[]chan struct{}, turn chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(*queue, turn); i >= 0 {
		*queue = slices.Delete(*queue, i, i+1)
		return
	}
	g.next()
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next()
}

// next is called with mu held.
func (g *gate) next() {
	for _, queue := range []*[]chan struct{}{&g.urgent, &g.patient} {
		if len(*queue) > 0 {
			close((*queue)[0])
			*queue = slices.Delete(*queue, 0, 1)
			return
		}
	}
	g.free++
}
