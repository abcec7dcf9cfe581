package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// cleanup is the name of the pods that clean a node.
const cleanup = "tacit-cleanup"

// cleanNodes ends the agents and then takes away, on each node, everything
// that they have made there.
func (r Removal) cleanNodes(ctx context.Context, c *cluster.Cluster, agent *apps.DaemonSet) error {
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, meta.ListOptions{
		LabelSelector: labels.SelectorFromSet(agent.Spec.Template.Spec.NodeSelector).String(),
	})
	if err != nil {
		return fmt.Errorf("list the nodes to clean: %w", err)
	}
	err = c.Client.AppsV1().DaemonSets(c.Namespace).Delete(ctx, cluster.Agent, meta.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("end the agents: %w", err)
	}
	problems := []error{r.waitGone(ctx, c, cluster.Agent)}
	pods := map[string]string{} // by pod: its node
	for i := range nodes.Items {
		node := &nodes.Items[i]
		if !nodeIsReady(node) {
			problems = append(problems, fmt.Errorf("node %s is not ready and was not cleaned: its pods' rules go with the pods,"+
				" the entry in its CNI configuration stays. Run tacit uninstall again when it is back", node.Name))
			continue
		}
		pod, err := c.Client.CoreV1().Pods(c.Namespace).Create(ctx, cleanupPod(agent, node.Name), meta.CreateOptions{})
		if err != nil {
			problems = append(problems, fmt.Errorf("clean node %s: %w", node.Name, err))
			continue
		}
		pods[pod.Name] = node.Name
	}
	fmt.Fprintf(r.Out, "Cleaning %d nodes.\n", len(pods))
	return errors.Join(append(problems, r.awaitCleanup(ctx, c, pods))...)
}

// cleanupPod runs "tacit-agent cleanup" once on a node, with all that the
// agent may and sees there.
func cleanupPod(agent *apps.DaemonSet, node string) *core.Pod {
	spec := agent.Spec.Template.Spec.DeepCopy()
	spec.NodeName = node // not by the scheduler: a full node is cleaned, too
	spec.NodeSelector = nil
	spec.RestartPolicy = core.RestartPolicyNever
	container := &spec.Containers[0]
	container.Name = cleanup
	container.Args = []string{"cleanup"}
	for _, arg := range agent.Spec.Template.Spec.Containers[0].Args {
		name, _, _ := strings.Cut(arg, "=")
		switch name {
		case "--kubernetes", "--node", "--namespace", "--run-dir", "--netns-dir", "--host-proc", "--cni-bin-dir", "--cni-conf-dir", "--cni-socket", "--iptables":
			container.Args = append(container.Args, arg)
		}
	}
	container.Ports, container.ReadinessProbe, container.LivenessProbe = nil, nil, nil
	mountRun(spec)
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{
			GenerateName: cleanup + "-",
			Labels:       map[string]string{"app.kubernetes.io/name": cleanup, "app.kubernetes.io/part-of": "tacit", "tacit.mesh/dataplane": "disabled"},
		},
		Spec: *spec,
	}
}

// mountRun puts all of the node's /run in the place of what the agent has of
// it, so that the directory that was made there can go, too.
func mountRun(spec *core.PodSpec) {
	const run = "/run"
	container := &spec.Containers[0]
	container.VolumeMounts = slices.DeleteFunc(container.VolumeMounts, func(m core.VolumeMount) bool { return strings.HasPrefix(m.MountPath, run+"/") })
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v core.Volume) bool {
		return v.HostPath != nil && strings.HasPrefix(v.HostPath.Path, run+"/")
	})
	propagation := core.MountPropagationHostToContainer
	container.VolumeMounts = append(container.VolumeMounts, core.VolumeMount{Name: "node-run", MountPath: run, MountPropagation: &propagation})
	spec.Volumes = append(spec.Volumes, core.Volume{Name: "node-run", VolumeSource: core.VolumeSource{HostPath: &core.HostPathVolumeSource{Path: run}}})
}

// awaitCleanup waits for the pods, says what went wrong in them, and takes
// them away.
func (r Removal) awaitCleanup(ctx context.Context, c *cluster.Cluster, nodes map[string]string) error {
	open := map[string]string{}
	for pod, node := range nodes {
		open[pod] = node
	}
	var problems []error
	err := wait.PollUntilContextTimeout(ctx, interval, r.Timeout, true, func(ctx context.Context) (bool, error) {
		list, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, meta.ListOptions{LabelSelector: cluster.Selector(cleanup)})
		if err != nil {
			return false, err
		}
		for _, pod := range list.Items {
			node, waiting := open[pod.Name]
			if !waiting || pod.Status.Phase != core.PodSucceeded && pod.Status.Phase != core.PodFailed {
				continue
			}
			delete(open, pod.Name)
			if pod.Status.Phase == core.PodFailed {
				problems = append(problems, fmt.Errorf("clean node %s: %s", node, lastWords(ctx, c, pod.Name)))
			}
		}
		return len(open) == 0, nil
	})
	if err != nil && !wait.Interrupted(err) {
		problems = append(problems, fmt.Errorf("clean the nodes: %w", err))
	}
	for _, node := range open {
		problems = append(problems, fmt.Errorf("clean node %s: not done after %v", node, r.Timeout))
	}
	for pod := range nodes {
		err := c.Client.CoreV1().Pods(c.Namespace).Delete(context.WithoutCancel(ctx), pod, meta.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			problems = append(problems, fmt.Errorf("remove pod %s: %w", pod, err))
		}
	}
	return errors.Join(problems...)
}

// lastWords are the end of a pod's log: why it failed.
func lastWords(ctx context.Context, c *cluster.Cluster, pod string) string {
	lines := int64(20)
	log, err := c.Client.CoreV1().Pods(c.Namespace).GetLogs(pod, &core.PodLogOptions{TailLines: &lines}).Stream(ctx)
	if err != nil {
		return "failed, and its log cannot be read: " + err.Error()
	}
	defer log.Close()
	text, _ := io.ReadAll(io.LimitReader(log, 16<<10))
	return strings.TrimSpace(string(text))
}
