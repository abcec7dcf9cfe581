package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/internal/kube"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/pods/cluster"
)

// ownNamespace is where the kubelet's probes come from: the agent runs in the
// network namespace of its node.
const ownNamespace = "/proc/thread-self/ns/net"

func (o *options) run(ctx context.Context, log *zap.Logger) error {
	defer func() { _ = log.Sync() }()
	g, gctx := errgroup.WithContext(ctx)
	server := handoff.New(handoff.Config{
		Socket: filepath.Join(o.runDir, "agent.sock"), ProxyUID: o.proxyUID, ProxyCgroup: o.proxyCgroup, Log: log,
	})
	config := pods.Config{Sockets: server, Backend: pods.Backend(o.iptables), Node: ownNamespace, Log: log}
	var source pods.Source = &pods.Manifests{
		Dir: o.from, NetNSDir: o.netnsDir, Node: o.node, TrustDomain: o.trustDomain, Skips: o.skips, Log: log,
	}
	var node *clusterNode
	if o.kubernetes {
		var err error
		if node, err = o.cluster(log); err != nil {
			return err
		}
		source = node.source
		config.Locate, config.Announce, config.Report = node.locator.Locate, node.source.Announce, node.source.Report
	}
	set := pods.New(config)
	ready := set.Synced
	if node != nil {
		ready = node.run(gctx, g, set)
	}
	if o.metrics != "" {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.metrics)
		if err != nil {
			return fmt.Errorf("listen for metrics: %w", err)
		}
		if o.listening != nil {
			o.listening(listener.Addr().String())
		}
		log.Info("serving metrics", zap.Stringer("address", listener.Addr()))
		g.Go(func() error { return httpserve.Run(gctx, listener, handler(set, server, ready)) })
	}
	g.Go(func() error { return server.Run(gctx) })
	g.Go(func() error { return set.Run(gctx) })
	g.Go(func() error { return source.Run(gctx, set.Update) })
	log.Info("tacit-agent started", zap.String("node", o.node))
	err := g.Wait()
	if ctx.Err() != nil {
		log.Info("tacit-agent stopped; rules and listeners stay in place")
		return nil
	}
	return err
}

// clusterNode is what there is on a node of a Kubernetes cluster alone.
type clusterNode struct {
	options *options
	log     *zap.Logger
	client  kubernetes.Interface
	source  *cluster.Source
	locator *pods.Locator
}

func (o *options) cluster(log *zap.Logger) (*clusterNode, error) {
	config, err := kube.Config(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	source, err := cluster.NewSource(cluster.Config{
		Client: client, Reader: pods.Reader{Node: o.node, TrustDomain: o.trustDomain, Skips: o.skips, Release: o.release}, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return &clusterNode{options: o, log: log, client: client, source: source, locator: o.locator()}, nil
}

func (o *options) locator() *pods.Locator {
	return pods.NewLocator(o.hostProc, cmp.Or(o.netnsDir, runtimePins))
}

// run starts what else there is, and returns what says whether the node is
// ready for pods.
func (n *clusterNode) run(ctx context.Context, g *errgroup.Group, set *pods.Set) (ready func() bool) {
	ready = set.Synced
	if n.options.removeTaint {
		g.Go(func() error { return cluster.RemoveTaint(ctx, n.client, n.options.node, taint, ready, n.log) })
	}
	return ready
}
