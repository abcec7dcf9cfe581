package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// progress is how far a workload is.
type progress struct {
	name         string
	ready, total int32
	done         bool
	problem      string // of the pod that is the first to have one
}

func (p progress) String() string {
	unit := "ready"
	if p.name != cluster.Control {
		unit = "nodes ready"
	}
	text := fmt.Sprintf("%-12s %d of %d %s", p.name, p.ready, p.total, unit)
	if !p.done && p.problem != "" {
		text += ": " + p.problem
	}
	return text
}

// settle is how long nothing is said of problems: pods that wait for each
// other have some at first.
const settle = 10 * time.Second

// wait shows how far the workloads are until all are ready, or the time is up:
// then the error says which are not, and why.
func (o Options) wait(ctx context.Context, c *cluster.Cluster, workloads ...string) error {
	if o.Timeout == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, errTimeout)
	w := watch(ctx, c)
	defer func() {
		cancel()
		w.factory.Shutdown()
	}()
	screen := progressScreen{out: o.Out, width: o.Width}
	settled := time.NewTimer(settle)
	defer settled.Stop()
	for {
		var all []progress
		done := true
		for _, name := range workloads {
			p := w.progress(name)
			all = append(all, p)
			done = done && p.done
		}
		screen.show(all)
		if done {
			return nil
		}
		select {
		case <-w.changed:
		case <-settled.C:
			screen.problems = true
		case <-ctx.Done():
			return notReady(context.Cause(ctx), o.Timeout, all)
		}
	}
}

var errTimeout = errors.New("the time is up")

func notReady(cause error, timeout time.Duration, all []progress) error {
	if !errors.Is(cause, errTimeout) {
		return cause
	}
	var lines []string
	for _, p := range all {
		if !p.done {
			lines = append(lines, "  "+p.String())
		}
	}
	return &unready{timeout, strings.Join(lines, "\n")}
}

// unready is that workloads were not ready in time.
type unready struct {
	timeout time.Duration
	lines   string // one for each
}

func (u *unready) Error() string {
	return fmt.Sprintf("not ready after %v (--timeout); it goes on by itself:\n%s\ntacit check may say what is in the way", u.timeout, u.lines)
}

// watched are the objects of our namespace as they are now.
type watched struct {
	c       *cluster.Cluster
	factory informers.SharedInformerFactory
	changed chan struct{} // something did
}

func watch(ctx context.Context, c *cluster.Cluster) *watched {
	w := &watched{c: c, changed: make(chan struct{}, 1)}
	w.factory = informers.NewSharedInformerFactoryWithOptions(c.Client, 0, informers.WithNamespace(c.Namespace))
	note := func() {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { note() }, UpdateFunc: func(any, any) { note() }, DeleteFunc: func(any) { note() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		w.factory.Apps().V1().DaemonSets().Informer(), w.factory.Apps().V1().Deployments().Informer(),
		w.factory.Core().V1().Pods().Informer(), w.factory.Core().V1().Events().Informer(),
	} {
		// Neither fails before the informers have been started.
		_, _ = informer.AddEventHandler(handler)
	}
	w.factory.Start(ctx.Done())
	w.factory.WaitForCacheSync(ctx.Done())
	return w
}

func (w *watched) progress(name string) progress {
	p := progress{name: name}
	switch name {
	case cluster.Control:
		d, err := w.factory.Apps().V1().Deployments().Lister().Deployments(w.c.Namespace).Get(name)
		if err != nil {
			return absent(p, err)
		}
		p.fromDeployment(d)
	default:
		d, err := w.factory.Apps().V1().DaemonSets().Lister().DaemonSets(w.c.Namespace).Get(name)
		if err != nil {
			return absent(p, err)
		}
		p.fromDaemonSet(d, w.pods(name))
	}
	if !p.done {
		p.problem = w.problem(name)
	}
	return p
}

func absent(p progress, err error) progress {
	if !apierrors.IsNotFound(err) {
		p.problem = err.Error()
	}
	return p
}

func (p *progress) fromDeployment(d *apps.Deployment) {
	p.total = 1
	if d.Spec.Replicas != nil {
		p.total = *d.Spec.Replicas
	}
	p.ready = min(d.Status.AvailableReplicas, d.Status.UpdatedReplicas)
	p.done = d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas >= p.total &&
		d.Status.AvailableReplicas >= p.total && d.Status.Replicas == d.Status.UpdatedReplicas
}

// fromDaemonSet counts nodes with a ready pod of the newest revision. The
// status alone does not tell: where a node has two, it is about the older one,
// a proxy that may drain for an hour.
func (p *progress) fromDaemonSet(d *apps.DaemonSet, pods []*core.Pod) {
	ready := int32(0)
	for _, pod := range pods {
		if pod.Labels[podGeneration] == d.Annotations[apps.DeprecatedTemplateGeneration] && pod.DeletionTimestamp == nil && isReady(pod) {
			ready++
		}
	}
	p.total = d.Status.DesiredNumberScheduled
	p.ready = max(ready, min(d.Status.NumberAvailable, d.Status.UpdatedNumberScheduled))
	p.done = d.Status.ObservedGeneration >= d.Generation && p.total > 0 && p.ready >= p.total
}

// podGeneration is the label of a DaemonSet's pods with the revision of its
// template that they are made of.
const podGeneration = "pod-template-generation"

// pods are those of a workload, by name.
func (w *watched) pods(name string) []*core.Pod {
	selector, err := labels.Parse(cluster.Selector(name))
	if err != nil {
		return nil // ours are valid
	}
	pods, err := w.factory.Core().V1().Pods().Lister().Pods(w.c.Namespace).List(selector)
	if err != nil {
		return nil // of a cache
	}
	slices.SortFunc(pods, func(a, b *core.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods
}

// problem is what keeps the first pod that is not ready from being so.
func (w *watched) problem(name string) string {
	pods := w.pods(name)
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil || isReady(pod) {
			continue
		}
		where := pod.Name
		if pod.Spec.NodeName != "" {
			where = "on " + pod.Spec.NodeName
		}
		if why := w.reason(pod); why != "" {
			return where + ": " + why
		}
	}
	if len(pods) == 0 {
		return w.lastWarning(name)
	}
	return ""
}

func isReady(pod *core.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c core.PodCondition) bool {
		return c.Type == core.PodReady && c.Status == core.ConditionTrue
	})
}

// reason is the best that is known: what the container last died of, what it
// waits for, or the last warning about the pod.
func (w *watched) reason(pod *core.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		if ended := s.LastTerminationState.Terminated; ended != nil {
			return fmt.Sprintf("restarted %d times, exit code %d (%s): kubectl -n %s logs -p %s", s.RestartCount, ended.ExitCode, ended.Reason, pod.Namespace, pod.Name)
		}
		if waits := s.State.Waiting; waits != nil && waits.Reason != "ContainerCreating" {
			return strings.TrimSpace(waits.Reason + " " + firstLine(waits.Message))
		}
	}
	if warning := w.lastWarning(pod.Name); warning != "" {
		return warning
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == core.PodScheduled && c.Status == core.ConditionFalse {
			return firstLine(c.Message)
		}
	}
	return ""
}

// lastWarning is the newest about an object, by its name.
func (w *watched) lastWarning(name string) string {
	all, err := w.factory.Core().V1().Events().Lister().Events(w.c.Namespace).List(labels.Everything())
	if err != nil {
		return ""
	}
	var newest *core.Event
	for _, e := range all {
		if e.Type == core.EventTypeWarning && e.InvolvedObject.Name == name && (newest == nil || when(e).After(when(newest))) {
			newest = e
		}
	}
	if newest == nil {
		return ""
	}
	return newest.Reason + ": " + firstLine(newest.Message)
}

func when(e *core.Event) time.Time {
	for _, at := range []meta.Time{e.LastTimestamp, {Time: e.EventTime.Time}} {
		if !at.IsZero() {
			return at.Time
		}
	}
	return e.CreationTimestamp.Time
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// progressScreen shows the workloads, each on a line of its own: drawn over on a
// terminal, elsewhere when it changes.
type progressScreen struct {
	out   io.Writer
	width int // of the terminal; 0 if there is none
	// problems is whether to say what keeps a workload from being ready.
	problems bool
	last     []string
}

func (s *progressScreen) show(all []progress) {
	lines := make([]string, len(all))
	for i, p := range all {
		if !s.problems {
			p.problem = ""
		}
		lines[i] = "  " + p.String()
	}
	if s.width > 0 && s.last != nil {
		fmt.Fprintf(s.out, "\x1b[%dA", len(s.last))
	}
	for i, line := range lines {
		switch {
		case s.width > 0:
			// A line that wraps would be two to go up.
			short := []rune(line)
			fmt.Fprintf(s.out, "\x1b[2K%s\n", string(short[:min(len(short), s.width-1)]))
		case s.last == nil || s.last[i] != line:
			fmt.Fprintln(s.out, line)
		}
	}
	s.last = lines
}
