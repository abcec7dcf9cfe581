// Package kube is a real Kubernetes of several nodes on one machine, without
// Docker, and Tacit on it: for the tests in this package, which make e2e runs.
//
// A node is a process tree in namespaces of its own with containerd, kubelet
// and kube-proxy, its files a layer above the machine's. The control plane
// and a bridge are beside the nodes, all of it in a world of test/world: when
// the program that made the cluster ends, by SIGKILL too, nothing is left of
// it, and two of them at a time know nothing of each other.
//
//	bridge ── 10.89.0.1, fd00:89::1 (etcd, API server, controllers; the tests)
//	  ├─ node1 ── 10.89.0.11, fd00:89::11 ── pods 10.244.1.0/24, fd00:244:1::/64
//	  └─ node2 ── 10.89.0.12, fd00:89::12 ── pods 10.244.2.0/24, fd00:244:2::/64
//
// [Attach] uses a cluster that is there instead. What does not belong here:
// how Tacit does what it does.
package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tacit-mesh/tacit/test/world"
)

// dir is in memory and in the world's own namespace.
const dir = "/run/tacit/kube"

// bootTimeout bounds the start of a control plane or node.
const bootTimeout = 2 * time.Minute

// Cluster is a running cluster and the ways to it.
type Cluster struct {
	Kubeconfig string // file, of an administrator
	Config     *rest.Config
	Client     kubernetes.Interface

	dynamic  dynamic.Interface
	mapper   meta.ResettableRESTMapper
	programs string // directory of what goes into images
	registry string // where to push images; "" where nodes are ours

	// Of clusters that are ours only:
	binaries  string
	authority *authority
	control   map[string]*world.Program
	nodes     map[string]*Node
}

// Attach uses the cluster of a kubeconfig file. Images are pushed to the
// registry, such as "registry.example/tacit", from where its nodes pull them;
// programs is the directory of what they are made of.
func Attach(kubeconfig, registry, programs string) (*Cluster, error) {
	c := &Cluster{Kubeconfig: kubeconfig, programs: programs, registry: registry}
	if registry == "" {
		return nil, errors.New("which registry can the nodes of this cluster pull from? set REGISTRY, such as registry.example/tacit")
	}
	return c, c.connect()
}

// Up makes a cluster of a number of nodes. One directory holds "kubernetes" and
// "coredns", the other Tacit's programs and "app"; neither may be below /run.
// It must be called inside [world.Enter].
func Up(ctx context.Context, binaries, programs string, nodes int) (*Cluster, error) {
	c := &Cluster{
		Kubeconfig: filepath.Join(dir, "admin.kubeconfig"),
		programs:   programs,
		binaries:   binaries,
		control:    map[string]*world.Program{},
		nodes:      map[string]*Node{},
	}
	if err := c.up(ctx, nodes); err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: %w\n%s", err, logs()), c.Down())
	}
	return c, nil
}

func (c *Cluster) up(ctx context.Context, nodes int) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	plans := make([]addressPlan, nodes)
	for i := range plans {
		plans[i] = planNode(i + 1)
	}
	if err := makeBackbone(plans); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	app, err := c.appImage()
	if err != nil {
		return err
	}
	for _, plan := range plans {
		node, err := c.newNode(plan, plans, app.ref.Name())
		if err != nil {
			return err
		}
		c.nodes[plan.Name] = node
		if err := node.start(); err != nil {
			return err
		}
	}
	dns, err := c.dnsImage()
	if err != nil {
		return err
	}
	if err := c.publish(ctx, app, dns); err != nil {
		return err
	}
	for _, node := range c.nodes {
		if err := node.awaitReady(ctx, time.Time{}); err != nil {
			return err
		}
	}
	return c.startDNS(ctx, dns.ref.Name())
}

// startDNS returns when services have names and pods may be made.
func (c *Cluster) startDNS(ctx context.Context, image string) error {
	text, err := fill("manifests/coredns.yaml", map[string]string{"DNS": clusterDNS, "CoreDNSImage": image})
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, string(text)); err != nil {
		return err
	}
	if err := c.AwaitDeployment(ctx, metav1.NamespaceSystem, "coredns"); err != nil {
		return err
	}
	return Await(ctx, c, metav1.NamespaceDefault, "default", func(*corev1.ServiceAccount) error { return nil })
}

// Connect leads to the objects of a cluster, and to nothing else of it.
func Connect(config *rest.Config) (*Cluster, error) {
	c := &Cluster{Config: config}
	// Tests wait for what they have asked for, not for their own client.
	c.Config.QPS, c.Config.Burst = 200, 400
	var err error
	if c.Client, err = kubernetes.NewForConfig(c.Config); err != nil {
		return nil, err
	}
	if c.dynamic, err = dynamic.NewForConfig(c.Config); err != nil {
		return nil, err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Client.Discovery()))
	return c, nil
}

// connect makes the clients.
func (c *Cluster) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	way, err := Connect(config)
	if err == nil {
		c.Config, c.Client, c.dynamic, c.mapper = way.Config, way.Client, way.dynamic, way.mapper
	}
	return err
}

// Node finds a node by its name; nil where the cluster is not ours.
func (c *Cluster) Node(name string) *Node { return c.nodes[name] }

// Ours reports whether this is a cluster whose nodes may be cut off.
func (c *Cluster) Ours() bool { return c.binaries != "" }

// Down ends everything that is ours; another's cluster is left as it is.
func (c *Cluster) Down() error {
	var err error
	for _, node := range c.nodes {
		err = errors.Join(err, node.PowerCut())
	}
	for _, program := range c.control {
		err = errors.Join(err, program.Kill())
	}
	if c.Ours() {
		err = errors.Join(err, removeBackbone(), os.RemoveAll(dir))
	}
	return err
}

// logs is how the logs of the cluster's own programs end.
func logs() string {
	var out strings.Builder
	for _, pattern := range []string{"*.log", "*/*.log"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is well-formed
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				text = []byte(err.Error())
			}
			fmt.Fprintf(&out, "\n%s ends with:\n%s\n", name, text[max(0, len(text)-1500):])
		}
	}
	return out.String()
}

// nodeReady says what keeps a node from having been ready since a time.
func nodeReady(node *corev1.Node, since time.Time) error {
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
			break
		}
		if condition.Status == corev1.ConditionTrue {
			return nil
		}
		return fmt.Errorf("%s: %s", condition.Reason, condition.Message)
	}
	return errors.New("its kubelet has not said anything")
}
