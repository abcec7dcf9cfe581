package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

// ownNamespace is where the kubelet's probes come from: the agent runs in the
// network namespace of its node.
const ownNamespace = "/proc/thread-self/ns/net"

func (o *options) run(ctx context.Context, log *zap.Logger) error {
	defer func() { _ = log.Sync() }()
	g, gctx := errgroup.WithContext(ctx)
	handing := handoff.Config{
		Socket: filepath.Join(o.runDir, "agent.sock"), ProxyUID: o.proxyUID, ProxyCgroup: o.proxyCgroup, Log: log,
	}
	config := pods.Config{Backend: pods.Backend(o.iptables), Node: ownNamespace, Log: log}
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
		handing.CheckGroups = node.source.CheckProxy(o.namespace)
	}
	server := handoff.New(handing)
	config.Sockets = server
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
	g.Go(func() error {
		if node != nil { // before, it cannot tell who is the proxy
			if err := node.source.Await(gctx); err != nil {
				return err
			}
		}
		return server.Run(gctx)
	})
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
