package pods

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/rules"
)

// node is the node's own network namespace. There, probes of captured pods get
// the source address by which the pods' rules know them.
type node struct {
	path    string
	backend Backend

	mu       sync.Mutex
	targets  map[string][]netip.AddrPort // by the pods' UIDs
	changes  int                         // of targets
	included int                         // changes that the rules include

	writing sync.Mutex // guards the rest
	place   *place
	kept    map[rules.Family][]string // of an agent before this one, until all pods are known
}

func newNode(path string, b Backend) *node {
	return &node{path: path, backend: b, targets: map[string][]netip.AddrPort{}}
}

// probe makes sure that probes of the pod reach these targets, and by that way
// nothing else of the pod. Many pods that change at once share one write.
func (n *node) probe(ctx context.Context, uid string, targets []netip.AddrPort) error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	switch {
	case !slices.Equal(n.targets[uid], targets):
		n.changes++
		n.targets[uid] = targets
		if len(targets) == 0 {
			delete(n.targets, uid)
		}
	case len(targets) == 0 || n.included == n.changes:
		n.mu.Unlock()
		return nil
	}
	mine := n.changes
	n.mu.Unlock()
	return n.write(ctx, func() bool { return n.behind(mine) })
}

// behind reports whether the rules lack one of the first changes.
func (n *node) behind(changes int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.included < changes
}

// synced says that every pod has been looked at: what an earlier agent wanted
// counts no more.
func (n *node) synced(ctx context.Context) error {
	return n.write(ctx, func() bool {
		n.kept = map[rules.Family][]string{}
		return true
	})
}

// check puts in order what others have changed, and what failed before.
func (n *node) check(ctx context.Context) error {
	return n.write(ctx, func() bool { return n.place != nil })
}

// write brings the rules to what is wanted if it is due once it is this
// caller's turn.
func (n *node) write(ctx context.Context, due func() bool) error {
	n.writing.Lock()
	defer n.writing.Unlock()
	if !due() {
		return nil
	}
	if err := n.open(ctx); err != nil {
		return fmt.Errorf("rules for probes on the node: %w", err)
	}
	n.mu.Lock()
	want, changes := rules.Node{Kept: n.kept}, n.changes
	for _, t := range n.targets {
		want.Targets = append(want.Targets, t...)
	}
	n.mu.Unlock()
	slices.SortFunc(want.Targets, netip.AddrPort.Compare)
	err := n.place.ns.Do(func() error {
		_, err := n.place.write(ctx, want.Tables)
		return err
	})
	if err != nil {
		return fmt.Errorf("rules for probes on the node: %w", err)
	}
	n.mu.Lock()
	n.included = changes
	n.mu.Unlock()
	return nil
}

// open reads what an earlier agent has left, before the first write.
func (n *node) open(ctx context.Context) error {
	if n.place != nil {
		return nil
	}
	ns, err := netns.Open(n.path)
	if err != nil {
		return err
	}
	place := newPlace(ns, n.backend)
	kept := map[rules.Family][]string{}
	err = ns.Do(func() error {
		for _, f := range families() {
			for _, t := range tools() {
				saved, err := t.save(ctx, f)
				if err != nil {
					return err
				}
				kept[f] = append(kept[f], saved.Probes()...)
			}
		}
		return nil
	})
	if err != nil {
		ns.Close()
		return err
	}
	n.place = place
	if n.kept == nil {
		n.kept = kept
	}
	return nil
}

func (n *node) close() {
	if n.place != nil {
		n.place.ns.Close()
	}
}

// probe lets the node reach these ports of the pod past the proxy.
func (w *worker) probe(ctx context.Context, uid string, targets []netip.AddrPort) error {
	if w.set.node == nil {
		return nil
	}
	return w.set.node.probe(ctx, uid, targets)
}

// targets are where probes of the pod go.
func targets(p Pod) []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range p.Addresses {
		for _, r := range p.Probes {
			for port := int(r.First); port <= int(r.Last); port++ {
				all = append(all, netip.AddrPortFrom(a, uint16(port)))
			}
		}
	}
	return all
}
