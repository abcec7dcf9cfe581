// Package cluster reaches an installation of Tacit from a person's machine:
// the API server by a kubeconfig, and programs inside our pods through it.
//
// What does not belong here: what is asked there (cmd/tacit, deploy/check) or
// changed (deploy/install).
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tacit-mesh/tacit/internal/version"
)

// The workloads, which are also the names of their containers.
const (
	Control = "tacitd"
	Proxy   = "tacit-proxy"
	Agent   = "tacit-agent"
	// Scout looks at nodes that have no agent yet; its container is called as
	// the agent's.
	Scout = "tacit-scout"
)

// The label that tells our pods apart.
const nameLabel = "app.kubernetes.io/name"

// The bounds of client-go's own queue, for a person who waits.
const (
	requestsPerSecond = 50
	burst             = 100
)

// ErrNoKubeconfig is that nothing says which cluster.
var ErrNoKubeconfig = errors.New("no cluster: there is no kubeconfig. Name one with --kubeconfig or in KUBECONFIG")

// Flags say which cluster. Empty ones are as kubectl takes them: by the
// environment, the usual file, and the context that is current there.
type Flags struct {
	Kubeconfig, Context string
	// Namespace is where Tacit is, or goes.
	Namespace string
}

// Cluster is one that was reached.
type Cluster struct {
	Namespace string
	Getter    genericclioptions.RESTClientGetter
	Config    *rest.Config
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	// Run runs a program in a pod; for tests, which have no pods.
	Run func(ctx context.Context, pod, container string, command []string) (stdout []byte, err error)
	// Stream is Run for a program that goes on saying things until the context
	// ends.
	Stream func(ctx context.Context, pod, container string, command []string, stdout io.Writer) error
	// Forward leads a port of this machine's loopback device, 0 for any, to one
	// of a pod's own, until the context ends or ended says why it broke.
	Forward func(ctx context.Context, pod string, local, remote int) (port int, ended <-chan error, err error)
}

// Connect reads the kubeconfig. Nothing is sent yet.
func (f Flags) Connect() (*Cluster, error) {
	getter := genericclioptions.NewConfigFlags(true)
	getter.KubeConfig, getter.Context, getter.Namespace = &f.Kubeconfig, &f.Context, &f.Namespace
	getter.WrapConfigFn = func(c *rest.Config) *rest.Config {
		c.UserAgent = "tacit/" + version.String()
		c.QPS, c.Burst = requestsPerSecond, burst
		return c
	}
	// Without this an empty kubeconfig would mean localhost.
	if raw, err := getter.ToRawKubeConfigLoader().RawConfig(); err == nil && len(raw.Contexts) == 0 && len(raw.Clusters) == 0 {
		return nil, ErrNoKubeconfig
	}
	config, err := getter.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	c := &Cluster{Namespace: f.Namespace, Getter: getter, Config: config, Client: client, Dynamic: objects}
	c.Run, c.Stream, c.Forward = c.exec, c.stream, c.forward
	return c, nil
}

// In is the same cluster, for what is in another namespace.
func (c *Cluster) In(namespace string) *Cluster {
	other := *c
	other.Namespace = namespace
	other.Run, other.Stream = other.exec, other.stream
	return &other
}

// Selector finds the pods of a workload.
func Selector(workload string) string { return nameLabel + "=" + workload }

// Pods are those of a workload that run, by node and then by age: of two
// proxies on a node the newer is the one that serves.
func (c *Cluster) Pods(ctx context.Context, workload string) ([]core.Pod, error) {
	list, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, meta.ListOptions{LabelSelector: Selector(workload)})
	if err != nil {
		return nil, fmt.Errorf("pods of %s: %w", workload, err)
	}
	pods := slices.DeleteFunc(list.Items, func(p core.Pod) bool {
		return p.Status.Phase != core.PodRunning || p.DeletionTimestamp != nil
	})
	slices.SortFunc(pods, func(a, b core.Pod) int {
		if order := strings.Compare(a.Spec.NodeName, b.Spec.NodeName); order != 0 {
			return order
		}
		return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
	})
	return pods, nil
}

// ErrNoProxy is that tacit-proxy is not there, or not yet.
var ErrNoProxy = errors.New("no proxy runs")

// Proxies are the pods of tacit-proxy, the one that serves of each node.
func (c *Cluster) Proxies(ctx context.Context) ([]core.Pod, error) {
	pods, err := c.Pods(ctx, Proxy)
	if err != nil {
		return nil, err
	}
	serving := slices.CompactFunc(pods, func(a, b core.Pod) bool { return a.Spec.NodeName == b.Spec.NodeName })
	if len(serving) == 0 {
		return nil, fmt.Errorf("%w in namespace %s of this cluster: install Tacit with tacit install, or name its namespace with --tacit-namespace", ErrNoProxy, c.Namespace)
	}
	return serving, nil
}
