package check

import (
	"context"
	"fmt"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/redirect/enrol"
)

// redirection is what the agent writes on a pod that is captured.
const redirection = "tacit.mesh/redirection"

// optedIn reports whether a pod is to be in the mesh and can be.
func optedIn(pod core.Pod, namespace *core.Namespace) bool {
	return enrol.Wanted(pod.Labels, namespace.Labels) && !pod.Spec.HostNetwork &&
		pod.Status.Phase != core.PodSucceeded && pod.Status.Phase != core.PodFailed && pod.DeletionTimestamp == nil
}

// captured compares who is opted in with whom the agents have reported.
func (s *state) captured(ctx context.Context) {
	before, wanted := len(s.findings), 0
	for _, pod := range s.pods {
		ns := s.namespaces[pod.Namespace]
		if ns == nil {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		is := pod.Annotations[redirection] == enrol.Enabled
		switch want := optedIn(pod, ns); {
		case want && !is && pod.Status.Phase == core.PodRunning:
			s.add(Broken, "Capture", name, "opted in and not captured"+s.warning(ctx, pod), "see kubectl -n "+pod.Namespace+" describe pod "+pod.Name+", and the log of tacit-agent on "+pod.Spec.NodeName)
		case !want && is && pod.DeletionTimestamp == nil && pod.Status.Phase == core.PodRunning && !pod.Spec.HostNetwork:
			s.add(Risky, "Capture", name, "opted out and still captured: connections go on, or the agent of "+pod.Spec.NodeName+" is away", "wait, or see the log of tacit-agent there")
		case want:
			wanted++
		}
		if pod.Spec.HostNetwork && pod.Labels[enrol.Label] == enrol.Enabled {
			s.add(Risky, "Capture", name, "opted in, but in the network of its node, where nothing is captured", "take the label off it, so that nobody relies on it")
		}
	}
	s.fine(before, "Capture", fmt.Sprintf("all %d pods that are opted in are captured", wanted))
}

// warning is the last that the agent has said of a pod.
func (s *state) warning(ctx context.Context, pod core.Pod) string {
	events, err := s.c.Client.CoreV1().Events(pod.Namespace).List(ctx, meta.ListOptions{FieldSelector: "involvedObject.uid=" + string(pod.UID)})
	if err != nil {
		return ""
	}
	var last *core.Event
	for i, e := range events.Items {
		if e.Source.Component == cluster.Agent && (last == nil || last.LastTimestamp.Before(&e.LastTimestamp)) {
			last = &events.Items[i]
		}
	}
	if last == nil {
		return ""
	}
	return ": " + last.Message
}

// workloads are ours: there on every node, and of one version.
func (s *state) workloads(ctx context.Context) {
	before := len(s.findings)
	for _, name := range []string{cluster.Agent, cluster.Proxy} {
		d, err := s.c.Client.AppsV1().DaemonSets(s.c.Namespace).Get(ctx, name, meta.GetOptions{})
		if err != nil {
			s.unknown("Tacit", name, err)
			continue
		}
		if ready, want := d.Status.NumberAvailable, d.Status.DesiredNumberScheduled; ready < want {
			s.add(Broken, "Tacit", name, fmt.Sprintf("runs on %d of %d nodes", ready, want), "see kubectl -n "+s.c.Namespace+" get pods -o wide")
		}
		if d.Status.UpdatedNumberScheduled < d.Status.DesiredNumberScheduled {
			s.add(Risky, "Tacit", name, fmt.Sprintf("%d of %d nodes have the current version", d.Status.UpdatedNumberScheduled, d.Status.DesiredNumberScheduled), "wait for the roll, or see what keeps it")
		}
	}
	d, err := s.c.Client.AppsV1().Deployments(s.c.Namespace).Get(ctx, cluster.Control, meta.GetOptions{})
	switch {
	case err != nil:
		s.unknown("Tacit", cluster.Control, err)
	case d.Status.AvailableReplicas == 0:
		s.add(Broken, "Tacit", cluster.Control, "none is ready: what is captured goes on, nothing new is", "see kubectl -n "+s.c.Namespace+" logs deploy/tacitd")
	case d.Status.AvailableReplicas == 1:
		s.add(Risky, "Tacit", cluster.Control, "only one is ready", "see kubectl -n "+s.c.Namespace+" describe deploy/tacitd, or set tacitd.replicas to 2")
	}
	s.fine(before, "Tacit", "all of it runs")
}
