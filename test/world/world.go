// Package world builds a small cluster out of network namespaces, on one
// machine and without touching its network: nodes with a backbone between
// them, and the pods of ordinary Kubernetes manifests, in which real programs
// run.
//
// A program that uses it calls [Enter] first: that runs the rest of it in
// namespaces of its own, so that when it ends, however it ends, every
// process, link, rule and mount of the world goes with it.
//
//	backbone ── 198.18.0.1, fd00:7ac1::1 (control plane)
//	  ├─ node a ── 198.18.0.11, fd00:7ac1::b ─┬─ pod
//	  │                                       └─ pod
//	  └─ node b ── 198.18.0.12, fd00:7ac1::c ─── pod
//
// Pods have the addresses of their manifests' status.podIPs and reach each
// other across nodes by plain routing, source addresses kept. There is no
// DNS: each pod's /etc/hosts holds the services' names. What does not belong
// here: any knowledge of how capture, tunnels or policies work.
package world

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config says what to build. Only Manifests is required.
type Config struct {
	// Manifests is the directory of Kubernetes manifests that describes
	// nodes (by spec.nodeName), pods and services. The world works on a copy.
	Manifests string
	// Programs is the directory of tacitd, tacit-agent and tacit-proxy;
	// the default is what [Enter] was asked to build.
	Programs string
	// ZDS has agents get their pods from Istio's CNI agent in the place of
	// the manifests; a test plays it at [Node.ZDSSocket].
	ZDS bool
	// Control has proxies follow another control plane in the place of tacitd.
	Control *ControlPlane
	// SplitCPUs gives each node CPUs of its own, as far as there are enough:
	// else a client and its server may share a cache by chance, or not.
	SplitCPUs bool
	// Arguments to add to each program's own.
	ControlArgs, AgentArgs, ProxyArgs []string
}

// World is a running cluster.
type World struct {
	config    Config
	dir       string // everything of this world on disk, in memory really
	manifests *manifests
	backbone  *namespace

	mu       sync.Mutex
	nodes    map[string]*Node
	pods     map[string]*Pod
	programs []*Program // everything started, in order
	control  *Program
	starts   map[string]int // by program name, to name log files
	links    int            // veth pairs made, to name them
}

var worlds atomic.Uint32 // numbers the worlds of this process

// New builds the namespaces and links; no program runs yet.
func New(ctx context.Context, c Config) (*World, error) {
	dir := filepath.Join(runDir, "w"+strconv.Itoa(int(worlds.Add(1))))
	w := &World{config: c, dir: dir, nodes: map[string]*Node{}, pods: map[string]*Pod{}, starts: map[string]int{}}
	if w.config.Programs == "" {
		w.config.Programs = programsDir
	}
	if err := w.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("world: %w", err), w.Close())
	}
	return w, nil
}

func (w *World) build(ctx context.Context) error {
	if os.Getenv(roleVariable) != roleInit {
		return errors.New("not inside its own namespaces: call world.Enter first, in main or TestMain")
	}
	for _, d := range []string{"manifests", "netns", "logs", "pods", "nodes"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o755); err != nil {
			return err
		}
	}
	var err error
	if w.manifests, err = copyManifests(w.config.Manifests, w.Manifests()); err != nil {
		return err
	}
	if w.backbone, err = newNamespace(filepath.Join(w.dir, "backbone")); err != nil {
		return err
	}
	if err := w.backbone.Do(makeBackbone); err != nil {
		return fmt.Errorf("backbone: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.reconcile()
}

// Reconfigure changes how programs are started from now on.
func (w *World) Reconfigure(change func(*Config)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.config)
}

// Manifests is the world's own copy of the manifests, one object a file.
func (w *World) Manifests() string { return filepath.Join(w.dir, "manifests") }

// Executable is the file of one of the programs.
func (w *World) Executable(name string) string { return w.program(name) }

// Dir is where the world keeps its files; it is gone when the world is.
func (w *World) Dir() string { return w.dir }

// Pod finds a pod by "NAMESPACE/NAME"; nil if the manifests have none.
func (w *World) Pod(key string) *Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[key]
}

// Pods lists all pods, by name.
func (w *World) Pods() []*Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sortedValues(w.pods)
}

// Node finds a node by its name; nil if no pod is on such a node.
func (w *World) Node(name string) *Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[name]
}

// Nodes lists all nodes, by name.
func (w *World) Nodes() []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sortedValues(w.nodes)
}

func sortedValues[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

// Apply adds or replaces the objects of a YAML text, one file after the
// other, each atomically. New pods get their namespaces before their
// manifests appear; their programs are started by [World.StartApps].
func (w *World) Apply(yaml string) error {
	objects, err := parseManifests("apply", []byte(yaml))
	if err != nil {
		return err
	}
	for _, o := range objects {
		w.manifests.set(o)
	}
	if err := w.reconcile(); err != nil {
		return err
	}
	for _, o := range objects {
		if err := w.manifests.write(o); err != nil {
			return err
		}
	}
	return nil
}

// Delete removes an object: its manifest first, and then, if it is a pod, the
// pod's programs and namespace. name is "NAMESPACE/NAME", or "NAME" for what
// has no namespace.
func (w *World) Delete(kind, name string) error {
	if err := w.manifests.remove(kind, name); err != nil {
		return err
	}
	return w.reconcile()
}

// reconcile makes nodes, pods and hosts files what the manifests say.
func (w *World) reconcile() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted, services := w.manifests.pods(), w.manifests.services()
	for key, pod := range w.pods {
		if now, ok := wanted[key]; !ok || !pod.sameLinks(now) {
			delete(w.pods, key)
			if err := w.removePod(pod); err != nil {
				return fmt.Errorf("pod %s: %w", key, err)
			}
		}
	}
	for _, name := range nodeNames(wanted) {
		if w.nodes[name] == nil {
			if err := w.addNode(name); err != nil {
				return fmt.Errorf("node %s: %w", name, err)
			}
			if w.config.SplitCPUs {
				w.nodes[name].cpus = shareOfCPUs(len(w.nodes)-1, len(nodeNames(wanted)))
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		if pod := w.pods[key]; pod != nil {
			pod.object = wanted[key]
			continue
		}
		pod, err := w.addPod(key, wanted[key])
		if err != nil {
			return fmt.Errorf("pod %s: %w", key, err)
		}
		w.pods[key] = pod
	}
	pods := sortedValues(w.pods)
	for _, pod := range pods {
		if err := pod.writeHosts(services, pods); err != nil {
			return fmt.Errorf("pod %s: hosts: %w", pod.Key, err)
		}
	}
	return nil
}

// shareOfCPUs are those that one of n nodes gets of what this process may use;
// where there are fewer than nodes, several share one.
func shareOfCPUs(index, n int) []int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	var all []int
	for cpu := range 8 * int(unsafe.Sizeof(set)) {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	each := max(1, len(all)/n)
	first := index * each % len(all)
	return all[first:min(len(all), first+each)]
}

// Close ends every program that the world started and removes its namespaces
// and files. Its error names processes that are left in the namespaces.
func (w *World) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	stopAll(w.programs)
	err := w.leftovers()
	for _, pod := range w.pods {
		err = errors.Join(err, pod.close())
	}
	for _, node := range w.nodes {
		err = errors.Join(err, node.netns.close())
	}
	if w.backbone != nil {
		err = errors.Join(err, w.backbone.close())
	}
	w.pods, w.nodes, w.programs = map[string]*Pod{}, map[string]*Node{}, nil
	return errors.Join(err, os.RemoveAll(w.dir))
}
