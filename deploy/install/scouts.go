package install

import (
	"bufio"
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
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/tacit-mesh/tacit/deploy"
	"github.com/tacit-mesh/tacit/deploy/cluster"
)

// WithScouts does something while each node that is to have an agent has a pod
// of the agent's image that can look at the node. It changes nothing there, and
// is gone afterwards; so is the namespace, if there was none and nothing else has
// come into it meanwhile. Where some nodes have no such pod before the options'
// time is up, that is done without them, and the error names them. Where there
// are agents, it is just done.
func WithScouts(ctx context.Context, c *cluster.Cluster, o Options, do func(context.Context) error) error {
	_, err := c.Client.AppsV1().DaemonSets(c.Namespace).Get(ctx, cluster.Agent, meta.GetOptions{})
	if err == nil {
		return do(ctx)
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for %s: %w", cluster.Agent, err)
	}
	scouts, err := o.scouts(c.Namespace)
	if err != nil {
		return err
	}
	_, err = c.Client.CoreV1().Namespaces().Get(ctx, c.Namespace, meta.GetOptions{})
	isOurs := apierrors.IsNotFound(err)
	if err := ensureNamespace(ctx, c); err != nil {
		return err
	}
	_, err = c.Client.AppsV1().DaemonSets(c.Namespace).Create(ctx, scouts, meta.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("nodes are being looked at already. If nobody does: kubectl --namespace %s delete daemonset %s", c.Namespace, cluster.Scout)
	}
	if err == nil {
		err = o.doWhenReady(ctx, c, scouts, do)
	}
	// Whoever has had enough is not to leave them behind.
	return errors.Join(err, o.removeScouts(context.WithoutCancel(ctx), c, isOurs))
}

func (o Options) doWhenReady(ctx context.Context, c *cluster.Cluster, scouts *apps.DaemonSet, do func(context.Context) error) error {
	err := o.wait(ctx, c, cluster.Scout)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var late *unready
	if errors.As(err, &late) {
		err = fmt.Errorf("not every node has a pod of %s that looks at it after %v (--timeout):\n%s", scouts.Spec.Template.Spec.Containers[0].Image, late.timeout, late.lines)
	}
	return errors.Join(do(ctx), err)
}

// removeScouts takes them away and waits until they are gone, and their
// namespace where that was made for them and has nothing else: whoever installs
// Tacit while they wait has the key of the CA there.
func (o Options) removeScouts(ctx context.Context, c *cluster.Cluster, withNamespace bool) error {
	r := Removal{Timeout: max(o.Timeout, time.Minute), Out: o.Out}
	err := c.Client.AppsV1().DaemonSets(c.Namespace).Delete(ctx, cluster.Scout, meta.DeleteOptions{})
	problems := []error{gone("DaemonSet "+cluster.Scout, err), r.waitGone(ctx, c, cluster.Scout)}
	if withNamespace {
		what, err := besideScouts(ctx, c)
		if err != nil {
			return errors.Join(append(problems, fmt.Errorf("namespace %s is left, as it is not known whether others use it: %w", c.Namespace, err))...)
		}
		if what != "" {
			fmt.Fprintf(r.Out, "Left: namespace %s, which has %s now.\n", c.Namespace, what)
			return errors.Join(problems...)
		}
		problems = append(problems, r.removeNamespace(ctx, c), wait.PollUntilContextTimeout(ctx, interval, r.Timeout, true, func(ctx context.Context) (bool, error) {
			_, err := c.Client.CoreV1().Namespaces().Get(ctx, c.Namespace, meta.GetOptions{})
			return apierrors.IsNotFound(err), nil
		}))
	}
	return errors.Join(problems...)
}

// besideScouts names something in the namespace that is none of theirs and would
// be lost with it: a workload or a Secret. "" means that there is nothing.
func besideScouts(ctx context.Context, c *cluster.Cluster) (string, error) {
	others := meta.ListOptions{LabelSelector: "app.kubernetes.io/name!=" + cluster.Scout, Limit: 1}
	plain, sets, jobs := c.Client.CoreV1(), c.Client.AppsV1(), c.Client.BatchV1()
	for _, kind := range []struct {
		name string
		list func() (runtime.Object, error)
	}{
		{"Secret", func() (runtime.Object, error) { return plain.Secrets(c.Namespace).List(ctx, others) }},
		{"Pod", func() (runtime.Object, error) { return plain.Pods(c.Namespace).List(ctx, others) }},
		{"Deployment", func() (runtime.Object, error) { return sets.Deployments(c.Namespace).List(ctx, others) }},
		{"DaemonSet", func() (runtime.Object, error) { return sets.DaemonSets(c.Namespace).List(ctx, others) }},
		{"StatefulSet", func() (runtime.Object, error) { return sets.StatefulSets(c.Namespace).List(ctx, others) }},
		{"CronJob", func() (runtime.Object, error) { return jobs.CronJobs(c.Namespace).List(ctx, others) }},
		{"Job", func() (runtime.Object, error) { return jobs.Jobs(c.Namespace).List(ctx, others) }},
	} {
		list, err := kind.list()
		if err != nil {
			return "", fmt.Errorf("look for a %s: %w", kind.name, err)
		}
		if apimeta.LenList(list) > 0 {
			return "a " + kind.name, nil
		}
	}
	return "", nil
}

// scouts is what looks at nodes: where the agents of these values would be, and
// with what of theirs that takes.
func (o Options) scouts(namespace string) (*apps.DaemonSet, error) {
	agent, err := o.agent(namespace)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{"app.kubernetes.io/name": cluster.Scout, "app.kubernetes.io/part-of": "tacit", optIn: "disabled"}
	spec := agent.Spec.Template.Spec.DeepCopy()
	none := false
	spec.ServiceAccountName, spec.AutomountServiceAccountToken, spec.HostPID = "", &none, false
	spec.PriorityClassName = "" // nobody has to make room
	container := &spec.Containers[0]
	conf := slices.IndexFunc(container.Args, func(a string) bool { return strings.HasPrefix(a, confDirFlag) })
	args := []string{"facts", "--stay"}
	if conf >= 0 {
		args = append(args, container.Args[conf])
	}
	container.Args, container.Env, container.Ports = args, nil, nil
	container.ReadinessProbe, container.LivenessProbe = nil, nil
	// A network namespace of its own to try rules in, and to read the node's.
	container.SecurityContext.Capabilities.Add = []core.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW"}
	container.SecurityContext.AppArmorProfile = nil
	keepConfDir(spec)
	return &apps.DaemonSet{
		ObjectMeta: meta.ObjectMeta{Name: cluster.Scout, Namespace: namespace, Labels: labels},
		Spec: apps.DaemonSetSpec{
			Selector: &meta.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": cluster.Scout}},
			Template: core.PodTemplateSpec{ObjectMeta: meta.ObjectMeta{Labels: labels}, Spec: *spec},
		},
	}, nil
}

// confDirFlag tells an agent where its node's conflists are.
const confDirFlag = "--cni-conf-dir="

// keepConfDir leaves of what is mounted the directory of conflists, to be read
// alone. What is not there is not made. Programs that read rules want to write a
// lock below /run.
func keepConfDir(spec *core.PodSpec) {
	container := &spec.Containers[0]
	const conf, run = "cni-conf", "run"
	container.VolumeMounts = slices.DeleteFunc(container.VolumeMounts, func(m core.VolumeMount) bool { return m.Name != conf })
	for i := range container.VolumeMounts {
		container.VolumeMounts[i].ReadOnly = true
	}
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v core.Volume) bool { return v.Name != conf })
	there := core.HostPathDirectory
	for i := range spec.Volumes {
		spec.Volumes[i].HostPath.Type = &there
	}
	container.VolumeMounts = append(container.VolumeMounts, core.VolumeMount{Name: run, MountPath: "/run"})
	spec.Volumes = append(spec.Volumes, core.Volume{Name: run, VolumeSource: core.VolumeSource{EmptyDir: &core.EmptyDirVolumeSource{Medium: core.StorageMediumMemory}}})
}

// agent is the DaemonSet of agents that the chart makes of these values.
func (o Options) agent(namespace string) (*apps.DaemonSet, error) {
	values, err := o.Values()
	if err != nil {
		return nil, err
	}
	text, err := deploy.Render(namespace, values)
	if err != nil {
		return nil, err
	}
	for documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the chart has no agent with these values: nodes are not looked at")
		}
		if err != nil {
			return nil, fmt.Errorf("read the chart: %w", err)
		}
		var found apps.DaemonSet
		if yaml.Unmarshal(document, &found) == nil && found.Kind == "DaemonSet" && found.Name == cluster.Agent {
			return &found, nil
		}
	}
}
