package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/zds"
)

// agent is what has been started of one.
type agent struct {
	sockets *handoff.Server
	metrics prometheus.Collector // about pods
	ready   func() bool          // for new pods
}

func (o *options) run(ctx context.Context, log *zap.Logger) error {
	defer func() { _ = log.Sync() }()
	g, gctx := errgroup.WithContext(ctx)
	handing := handoff.Config{
		Socket: filepath.Join(o.runDir, "agent.sock"), ProxyUID: o.proxyUID, ProxyCgroup: o.proxyCgroup, Log: log,
	}
	start := o.capturePods
	if o.zds != "" {
		start = o.followIstio
	}
	a, err := start(gctx, g, handing, log)
	if err == nil && o.metrics != "" {
		err = o.serveMetrics(gctx, g, a, log)
	}
	if err != nil {
		g.Go(func() error { return err }) // ends what has been started
	}
	log.Info("tacit-agent started", zap.String("node", o.node))
	err = g.Wait()
	if ctx.Err() != nil {
		log.Info("tacit-agent stopped; rules and listeners stay in place")
		return nil
	}
	return err
}

// capturePods finds the node's pods and captures them.
func (o *options) capturePods(ctx context.Context, g *errgroup.Group, handing handoff.Config, log *zap.Logger) (*agent, error) {
	config := pods.Config{Backend: pods.Backend(o.iptables), Node: netns.Own, Log: log}
	var source pods.Source = &pods.Manifests{
		Dir: o.from, NetNSDir: o.netnsDir, Node: o.node, TrustDomain: o.trustDomain, Skips: o.skips, DNS: o.dns, MaxBypass: o.maxBypass, Log: log,
	}
	var node *clusterNode
	if o.kubernetes {
		var err error
		if node, err = o.cluster(log); err != nil {
			return nil, err
		}
		source = node.source
		config.Locate, config.Announce, config.Report = node.locator.Locate, node.source.Announce, node.source.Report
		handing.CheckGroups = node.source.CheckProxy(o.namespace)
	}
	server := handoff.New(handing)
	config.Sockets = server
	set := pods.New(config)
	ready := set.Synced
	if node != nil {
		ready = node.run(ctx, g, set)
	}
	g.Go(func() error {
		if node != nil { // before, it cannot tell who is the proxy
			if err := node.source.Await(ctx); err != nil {
				return err
			}
		}
		return server.Run(ctx)
	})
	g.Go(func() error { return set.Run(ctx) })
	g.Go(func() error { return source.Run(ctx, set.Update) })
	return &agent{server, podMetrics{set}, ready}, nil
}

// followIstio serves the pods that Istio's CNI agent captures.
func (o *options) followIstio(ctx context.Context, g *errgroup.Group, handing handoff.Config, log *zap.Logger) (*agent, error) {
	server := handoff.New(handing)
	client := zds.New(zds.Config{Socket: o.zds, TrustDomain: o.trustDomain, DNS: o.dns.All, Sockets: server, Log: log})
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error { return client.Run(ctx) })
	return &agent{server, zdsMetrics{client}, client.Synced}, nil
}

func (o *options) serveMetrics(ctx context.Context, g *errgroup.Group, a *agent, log *zap.Logger) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.metrics)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	if o.listening != nil {
		o.listening(listener.Addr().String())
	}
	log.Info("serving metrics", zap.Stringer("address", listener.Addr()))
	g.Go(func() error { return httpserve.Run(ctx, listener, handler(a.metrics, a.sockets, a.ready)) })
	return nil
}
