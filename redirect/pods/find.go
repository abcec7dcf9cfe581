package pods

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/tacit-mesh/tacit/redirect/netns"
)

// locate is the path of the pod's network namespace, by what the pod's source
// knows or else by what the node shows.
func (w *worker) locate(p Pod) (string, error) {
	if w.set.cfg.Locate == nil {
		return p.NetNS, nil
	}
	return w.set.cfg.Locate(p)
}

func (w *worker) open(p Pod) error {
	if w.ns != nil {
		return nil
	}
	path, err := w.locate(p)
	if err != nil {
		return fmt.Errorf("find the pod's network namespace: %w", err)
	}
	ns, err := netns.Open(path)
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	w.path, w.ns, w.place = path, ns, newPlace(ns, w.set.cfg.Backend)
	return nil
}

func (w *worker) closeNS() {
	if w.ns != nil {
		w.ns.Close()
	}
	w.path, w.ns, w.place, w.facts, w.idle, w.applied = "", nil, nil, "", 0, wish{}
}

// stillThere reports whether the open namespace is the pod's still. A path may
// end before it does: that of one process of the pod's.
func (w *worker) stillThere(p Pod) bool {
	if p.NetNS != "" && p.NetNS != w.path && w.leadsHere(p.NetNS) {
		w.path = p.NetNS
		return true
	}
	if p.NetNS == "" || p.NetNS == w.path {
		if w.leadsHere(w.path) {
			return true
		}
	}
	path, err := w.locate(p)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	if !w.leadsHere(path) {
		return false
	}
	w.path = path
	return true
}

// leadsHere is true, too, of what cannot be looked at just now.
func (w *worker) leadsHere(path string) bool {
	id, err := netns.At(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return id == w.ns.ID()
}
