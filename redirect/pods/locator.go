package pods

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/procs"
)

// Locator finds the network namespaces of pods that run on this node already,
// by their processes.
type Locator struct {
	proc  string
	pins  string
	table *procs.Table
}

// NewLocator makes one of the node's processes, below proc, and the directory
// in which its container runtime pins network namespaces.
func NewLocator(proc, pins string) *Locator {
	return &Locator{proc: proc, pins: pins, table: procs.New(proc)}
}

// Locate is for [Config].Locate. It believes the pod's own path first, then
// the pod's oldest process whose namespace is not the node's and holds the
// pod's addresses.
func (l *Locator) Locate(p Pod) (string, error) {
	if p.NetNS != "" {
		if ns, err := netns.Open(p.NetNS); err == nil { // not the empty file that is left of one
			ns.Close()
			return p.NetNS, nil
		}
	}
	pids, err := l.table.OfPod(p.RuntimeUID)
	if err != nil {
		return "", err
	}
	if len(pids) == 0 {
		return "", fmt.Errorf("no process of the pod is visible on this node; does its runtime keep them in a sandbox? %w", fs.ErrNotExist)
	}
	seen, err := l.nodes()
	if err != nil {
		return "", err
	}
	reason := fmt.Errorf("its processes are in the node's own network namespace: %w", fs.ErrNotExist)
	for _, pid := range pids {
		path := l.ofProcess(strconv.Itoa(pid))
		id, err := netns.At(path)
		if err != nil || seen[id] { // it has ended
			continue
		}
		seen[id] = true
		if err := l.check(path, p); err != nil {
			reason = fmt.Errorf("no process of the pod is where its addresses are: %w: %w", err, fs.ErrNotExist)
			continue
		}
		return l.pinned(id, path), nil
	}
	return "", reason
}

// OnNode is where the agent finds the namespace that a program of the node
// itself, such as the CNI plugin, knows by this path.
func (l *Locator) OnNode(path string, id netns.ID) (string, error) {
	for _, candidate := range []string{
		filepath.Join(l.pins, filepath.Base(path)), path, filepath.Join(l.proc, strings.TrimPrefix(path, "/proc")), filepath.Join(l.proc, "1/root", path),
	} {
		if at, err := netns.At(candidate); err == nil && at == id {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("network namespace %s of the node is not visible to the agent: neither in %s nor as %s", path, l.pins, filepath.Join(l.proc, "1/root", path))
}

// nodes are the namespaces that are no pod's: the agent's own, which is the
// node's, and that of the first process, where that may be looked at.
func (l *Locator) nodes() (map[netns.ID]bool, error) {
	own, err := netns.At(netns.Own)
	if err != nil {
		return nil, fmt.Errorf("the node's own network namespace: %w", err)
	}
	ids := map[netns.ID]bool{own: true}
	if first, err := netns.At(l.ofProcess("1")); err == nil {
		ids[first] = true
	}
	return ids, nil
}

func (l *Locator) ofProcess(pid string) string { return filepath.Join(l.proc, pid, "ns/net") }

func (l *Locator) check(path string, p Pod) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	_, err = checkAddresses(ns, p.Addresses)
	return err
}

// pinned is a path that lasts as long as the pod, if there is one: a process
// may end before.
func (l *Locator) pinned(id netns.ID, path string) string {
	entries, err := os.ReadDir(l.pins)
	if err != nil {
		return path
	}
	for _, e := range entries {
		pin := filepath.Join(l.pins, e.Name())
		if at, err := netns.At(pin); err == nil && at == id {
			return pin
		}
	}
	return path
}

// Namespaces are the paths of all network namespaces on this node: those of
// its processes, and those that its container runtime pins.
func (l *Locator) Namespaces() (paths []string, err error) {
	seen := map[netns.ID]bool{}
	add := func(path string) {
		if id, err := netns.At(path); err == nil && !seen[id] {
			seen[id] = true
			paths = append(paths, path)
		}
	}
	if entries, err := os.ReadDir(l.pins); err == nil {
		for _, e := range entries {
			add(filepath.Join(l.pins, e.Name()))
		}
	}
	entries, err := os.ReadDir(l.proc)
	if err != nil {
		return nil, fmt.Errorf("processes of the node: %w", err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			add(l.ofProcess(e.Name()))
		}
	}
	return paths, nil
}
