// Package bench measures what the mesh costs on a cluster: clients and servers
// on two of its nodes, in and out of the mesh, and the same work as on one
// machine (perf/suite).
//
// What does not belong here: what is measured and how it is shown.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tacit-mesh/tacit/deploy/cluster"
	"github.com/tacit-mesh/tacit/perf/load"
	"github.com/tacit-mesh/tacit/perf/report"
	"github.com/tacit-mesh/tacit/perf/suite"
)

// Config says where and of what.
type Config struct {
	// Image has the command tacit; empty for the one beside the proxy's.
	Image string
	// ClientNode and ServerNode are the nodes; empty for any two that have a
	// proxy.
	ClientNode, ServerNode string
	Timeout                time.Duration // of making the pods, and of removing them
	Out                    io.Writer     // told what goes on
}

// bench is one run.
type bench struct {
	*cluster.Cluster
	Config
	in func(namespace string) *cluster.Cluster
	// within is the cluster in the bench's own namespace.
	within    *cluster.Cluster
	addresses map[string]string // of pods
}

// Measure makes the pods, measures, and removes what it has made, also when
// the context ends.
func Measure(ctx context.Context, c *cluster.Cluster, config Config, o suite.Options) (*report.Report, error) {
	return (&bench{Cluster: c, Config: config, in: c.In, addresses: map[string]string{}}).measure(ctx, o)
}

func (b *bench) measure(ctx context.Context, o suite.Options) (r *report.Report, err error) {
	proxies, err := b.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	between, err := choose(proxies, b.ClientNode, b.ServerNode)
	if err != nil {
		return nil, err
	}
	image := b.Image
	if image == "" {
		if image, err = imageBeside(between[0]); err != nil {
			return nil, err
		}
	}
	on := nodes{client: between[0].Spec.NodeName, server: between[1].Spec.NodeName}
	namespace, err := b.create(ctx, image, on)
	if namespace != "" {
		defer func() { err = errors.Join(err, b.remove(context.WithoutCancel(ctx), namespace)) }()
		fmt.Fprintf(b.Out, "Clients on node %s, servers on %s and some beside them, in namespace %s, which is removed at the end.\n", on.client, on.server, namespace)
	}
	if err != nil {
		return nil, err
	}
	b.within = b.in(namespace)
	if err := b.awaitPods(ctx); err != nil {
		return nil, err
	}
	paths := b.paths(between, o)
	for _, p := range paths {
		if err := p.Settle(ctx, b.Timeout); err != nil {
			return nil, err
		}
	}
	r = newReport(o, on, paths)
	if err := suite.Run(ctx, o, paths, r); err != nil {
		return nil, err
	}
	suite.Judge(r)
	r.Notes = append(r.Notes, overhead(r)...)
	return r, nil
}

// choose finds the proxies of two nodes.
func choose(proxies []core.Pod, client, server string) (chosen [2]core.Pod, err error) {
	take := func(want, not string) (core.Pod, error) {
		for _, p := range proxies {
			if p.Spec.NodeName != not && (want == "" || p.Spec.NodeName == want) {
				return p, nil
			}
		}
		if want != "" {
			return core.Pod{}, fmt.Errorf("no proxy runs on node %s", want)
		}
		return core.Pod{}, errors.New("it takes two nodes with a proxy: tacit status lists those that there are")
	}
	if client != "" && client == server {
		return chosen, errors.New("client and server want to be on two nodes; what they cost on one is measured in any case")
	}
	if chosen[0], err = take(client, server); err != nil {
		return chosen, err
	}
	chosen[1], err = take(server, chosen[0].Spec.NodeName)
	return chosen, err
}

// imageBeside is the image of the command, by where the proxy's is from.
func imageBeside(proxy core.Pod) (string, error) {
	for _, c := range proxy.Spec.Containers {
		if c.Name == cluster.Proxy {
			if i := strings.LastIndex(c.Image, cluster.Proxy); i >= 0 && !strings.Contains(c.Image, "@") {
				return c.Image[:i] + "tacit" + c.Image[i+len(cluster.Proxy):], nil
			}
			return "", fmt.Errorf("the image of the command cannot be told from the proxy's, %s: name it with --image", c.Image)
		}
	}
	return "", fmt.Errorf("pod %s has no container %s: name the image of the command with --image", proxy.Name, cluster.Proxy)
}

// awaitPods waits until all run, and those of the mesh are captured.
func (b *bench) awaitPods(ctx context.Context) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, time.Second/2, b.Timeout, true, func(ctx context.Context) (bool, error) {
		list, err := b.Client.CoreV1().Pods(b.within.Namespace).List(ctx, meta.ListOptions{})
		if err != nil {
			return false, err
		}
		last = nil
		for _, p := range list.Items {
			last = errors.Join(last, obstacle(p))
			b.addresses[p.Name] = p.Status.PodIP
		}
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the pods: %w: %w", err, last)
	}
	return nil
}

// obstacle is why a pod cannot be measured yet.
func obstacle(p core.Pod) error {
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return fmt.Errorf("pod %s: %s %s (is image %s there? --image names another)", p.Name, w.Reason, w.Message, p.Spec.Containers[0].Image)
		}
	}
	switch {
	case p.Status.Phase != core.PodRunning || p.Status.PodIP == "":
		return fmt.Errorf("pod %s is %s", p.Name, p.Status.Phase)
	case p.Labels[dataplane] == enabled && p.Annotations[redirection] != enabled:
		return fmt.Errorf("pod %s is not captured: tacit check may say why", p.Name)
	}
	return nil
}

// remove waits until nothing is left.
func (b *bench) remove(ctx context.Context, namespace string) error {
	fmt.Fprintf(b.Out, "Removing namespace %s.\n", namespace)
	err := b.Client.CoreV1().Namespaces().Delete(ctx, namespace, meta.DeleteOptions{})
	if err == nil {
		err = wait.PollUntilContextTimeout(ctx, time.Second/2, b.Timeout, true, func(ctx context.Context) (bool, error) {
			_, err := b.Client.CoreV1().Namespaces().Get(ctx, namespace, meta.GetOptions{})
			return apierrors.IsNotFound(err), ignoreNotFound(err)
		})
	}
	if err != nil {
		return fmt.Errorf("remove namespace %s: %w; kubectl delete namespace -l %s=true removes it", namespace, err, Label)
	}
	return nil
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// paths are those between the pods.
func (b *bench) paths(proxies [2]core.Pod, o suite.Options) []*suite.Path {
	var all []*suite.Path
	add := func(name string, class report.Class, client, server string, ports map[uint16]uint16, through ...core.Pod) *suite.Path {
		p := b.path(name, class, client, server, ports, through)
		if o.Paths.MatchString(name) {
			all = append(all, p)
		}
		return p
	}
	one := map[uint16]uint16{load.HTTPPort: load.HTTPPort}
	direct := add(suite.Direct, report.Plain, plainClient, plainServer, nil)
	add(suite.DirectNear, report.Plain, plainClient, plainNear, nil)
	add(suite.Skipped, report.Plain, meshedClient, meshedServer, map[uint16]uint16{load.EchoPort: load.SkippedPort})
	tacit := add(suite.Tacit, report.Tacit, meshedClient, meshedServer, nil, proxies[0], proxies[1])
	tacit.Beside = map[string]*suite.Path{suite.SentDirectly: direct,
		suite.ThroughProxies: b.path("", report.Tacit, meshedNeighbour, meshedServer, nil, nil)}
	add(suite.TacitNear, report.Tacit, meshedClient, meshedNear, nil, proxies[0])
	add(suite.TacitHTTP, report.Tacit, meshedClient, meshedHTTP, one, proxies[0], proxies[1])
	return all
}

func (b *bench) path(name string, class report.Class, client, server string, ports map[uint16]uint16, through []core.Pod) *suite.Path {
	port := func(kind string) uint16 {
		if !load.Known(kind) || kind == load.Cold {
			return 0 // a program of others, which is in no image of ours; or what takes more rights than a pod of the bench has
		}
		if ports != nil {
			return ports[load.Port(kind)]
		}
		return load.Port(kind)
	}
	p := &suite.Path{Path: report.Path{Name: name, Class: class}, Proxies: len(through),
		Takes: func(kind string) bool { return port(kind) != 0 },
		Load: func(ctx context.Context, c load.Config) (result load.Result, err error) {
			c.Address = net.JoinHostPort(b.addresses[server], strconv.Itoa(int(port(c.Kind))))
			text, err := json.Marshal(c)
			if err != nil {
				return result, err
			}
			out, err := b.within.Run(ctx, client, container, []string{"/usr/local/bin/tacit", "bench", "load", string(text)})
			if err != nil {
				return result, err
			}
			return result, json.Unmarshal(out, &result)
		}}
	if len(through) > 0 {
		p.Usage = func(ctx context.Context) (suite.Usage, error) { return b.usage(ctx, through) }
	}
	return p
}

func newReport(o suite.Options, on nodes, paths []*suite.Path) *report.Report {
	r := &report.Report{Title: "What the mesh costs on this cluster", Rounds: o.Rounds}
	r.Notes = append(r.Notes,
		fmt.Sprintf("Between nodes %s and %s, and on %s; %v for each measurement.", on.client, on.server, on.client, o.Time),
		"The proxies' CPU is all that those of the nodes use meanwhile, for others' traffic as well.",
		"Where the mesh lets nobody skip ports, skipped is as tacit.")
	for _, p := range paths {
		r.Paths = append(r.Paths, p.Path)
	}
	return r
}
