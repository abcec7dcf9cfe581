package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Removal is how Tacit is taken away.
type Removal struct {
	// Drain is how long connections may go on once no new ones are captured.
	Drain time.Duration
	// Timeout bounds each further step, such as waiting for pods.
	Timeout time.Duration
	// KeepCA leaves the CA's key and the namespace, for another installation
	// with the same identities.
	KeepCA bool
	Out    io.Writer
}

// proxiesEnd is how long nodes are left uncleaned for proxies to end: those of nodes
// that are away do not.
const proxiesEnd = 15 * time.Second

// interval is how often the API server is asked for what has no event.
const interval = time.Second

// Uninstall lets all pods go, waits for their connections, and then takes away
// everything: on each node, and from the API server. It goes on after what
// fails, and returns all of that at the end.
func Uninstall(ctx context.Context, c *cluster.Cluster, r Removal) error {
	config, err := helm(c)
	if err != nil {
		return err
	}
	agent, err := c.Client.AppsV1().DaemonSets(c.Namespace).Get(ctx, cluster.Agent, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		fmt.Fprintln(r.Out, "There is no tacit-agent: nothing is looked for on the nodes.")
		agent, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("look for tacit-agent: %w", err)
	}
	var problems []error
	if agent != nil {
		err := r.letGo(ctx, c, agent)
		if err == nil {
			// While the rules are there, so that applications see the end of what
			// is cut, and do not wait for answers that no rule brings any more.
			soon := r
			soon.Timeout = min(r.Timeout, proxiesEnd)
			err = r.endProxies(ctx, c)
			_ = soon.waitGone(ctx, c, cluster.Proxy) // looked at again in the end
		}
		problems = append(problems, err, r.cleanNodes(ctx, c, agent))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Fprintln(r.Out, "Removing the objects of the chart.")
	problems = append(problems, r.removeRelease(ctx, c, config), r.removeLeftovers(ctx, c))
	return errors.Join(problems...)
}

// letGo makes all agents release their pods, which cuts nothing, and waits
// until no captured connection is left.
func (r Removal) letGo(ctx context.Context, c *cluster.Cluster, agent *apps.DaemonSet) error {
	fmt.Fprintf(r.Out, "Letting go of all pods; their connections may go on for %v.\n", r.Drain)
	releasing := agent.DeepCopy()
	container := &releasing.Spec.Template.Spec.Containers[0]
	container.Args = append(withoutCNI(container.Args), "--release")
	all := intstr.FromString("100%")
	releasing.Spec.UpdateStrategy.RollingUpdate = &apps.RollingUpdateDaemonSet{MaxUnavailable: &all}
	if _, err := c.Client.AppsV1().DaemonSets(c.Namespace).Update(ctx, releasing, meta.UpdateOptions{}); err != nil {
		return fmt.Errorf("let all pods go: %w", err)
	}
	var problems []error
	if err := (Options{Timeout: r.Timeout, Out: r.Out}).wait(ctx, c, cluster.Agent); err != nil {
		problems = append(problems, fmt.Errorf("let all pods go: %w", err))
	}
	var live map[string]bool
	err := wait.PollUntilContextTimeout(ctx, interval, r.Drain, true, func(ctx context.Context) (bool, error) {
		now, err := liveConnections(ctx, c)
		if err == nil {
			live = now
		}
		return err == nil && len(now) == 0, nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case live == nil:
		problems = append(problems, errors.New("no proxy says which connections there are: unknown how many are cut"))
	case err != nil:
		fmt.Fprintf(r.Out, "Cutting %d connections that are still open after %v.\n", len(live), r.Drain)
	default:
		fmt.Fprintln(r.Out, "No connection had to be cut.")
	}
	return errors.Join(problems...)
}

// withoutCNI leaves out of the agent's arguments what makes it install the
// plugin again.
func withoutCNI(args []string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(a string) bool {
		return strings.HasPrefix(a, "--cni-bin-dir=") || strings.HasPrefix(a, "--cni-conf-dir=") || a == "--release"
	})
}

// liveConnections are the ids of all that the proxies carry. Both nodes of a
// connection know it by the same one.
func liveConnections(ctx context.Context, c *cluster.Cluster) (map[string]bool, error) {
	live := map[string]bool{}
	proxies, err := c.Proxies(ctx)
	if errors.Is(err, cluster.ErrNoProxy) { // an earlier run has ended them
		return live, nil
	}
	if err != nil {
		return nil, err
	}
	for _, pod := range proxies {
		text, err := c.Run(ctx, pod.Name, cluster.Proxy, []string{"tacit", "connections", "-o", "json"})
		if err != nil {
			return nil, fmt.Errorf("connections of node %s: %w", pod.Spec.NodeName, err)
		}
		var answer struct {
			Connections []admin.Connection `json:"connections"`
		}
		if err := json.Unmarshal(text, &answer); err != nil {
			return nil, fmt.Errorf("connections of node %s: %w", pod.Spec.NodeName, err)
		}
		for _, one := range answer.Connections {
			live[one.ID] = true
		}
	}
	return live, nil
}

// endProxies ends them without the drain, for which there is nothing left.
func (r Removal) endProxies(ctx context.Context, c *cluster.Cluster) error {
	alone := meta.DeletePropagationOrphan // its pods go by what is said below
	err := c.Client.AppsV1().DaemonSets(c.Namespace).Delete(ctx, cluster.Proxy, meta.DeleteOptions{PropagationPolicy: &alone})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("end the proxies: %w", err)
	}
	grace := int64(1)
	err = c.Client.CoreV1().Pods(c.Namespace).DeleteCollection(ctx, meta.DeleteOptions{GracePeriodSeconds: &grace},
		meta.ListOptions{LabelSelector: cluster.Selector(cluster.Proxy)})
	if err != nil {
		return fmt.Errorf("end the proxies: %w", err)
	}
	return nil
}

// removeRelease takes away what the chart made.
func (r Removal) removeRelease(ctx context.Context, c *cluster.Cluster, config *action.Configuration) error {
	uninstall := action.NewUninstall(config)
	uninstall.WaitStrategy = kube.HookOnlyStrategy
	uninstall.IgnoreNotFound = true
	uninstall.Timeout = r.Timeout
	var problems []error
	if _, err := uninstall.Run(deploy.Release); err != nil {
		problems = append(problems, fmt.Errorf("remove the objects of the chart: %w", err))
	}
	problems = append(problems, r.endProxies(ctx, c)) // also those that came in spite of it
	for _, workload := range []string{cluster.Proxy, cluster.Control} {
		problems = append(problems, r.waitGone(ctx, c, workload))
	}
	return errors.Join(problems...)
}

// waitGone waits until a workload has no pods any more; those of nodes that
// are away are left to Kubernetes.
func (r Removal) waitGone(ctx context.Context, c *cluster.Cluster, workload string) error {
	var left []string
	err := wait.PollUntilContextTimeout(ctx, interval, r.Timeout, true, func(ctx context.Context) (bool, error) {
		pods, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, meta.ListOptions{LabelSelector: cluster.Selector(workload)})
		if err != nil {
			return false, fmt.Errorf("pods of %s: %w", workload, err)
		}
		left = nil
		for _, pod := range pods.Items {
			left = append(left, pod.Name+" on "+pod.Spec.NodeName)
		}
		return len(left) == 0, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return fmt.Errorf("pods of %s do not end: %s. Are their nodes away?", workload, strings.Join(left, ", "))
	}
	return err
}

// nodeIsReady is what a cleanup of it needs.
func nodeIsReady(n *core.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c core.NodeCondition) bool {
		return c.Type == core.NodeReady && c.Status == core.ConditionTrue
	})
}
