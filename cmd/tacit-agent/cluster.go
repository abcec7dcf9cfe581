package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/internal/kube/access"
	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
	"github.com/tacit-mesh/tacit/redirect/cni"
	"github.com/tacit-mesh/tacit/redirect/cni/install"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/redirect/pods/cluster"
)

// cniTimeout is how long an enrolled pod waits for the agent, in seconds. The
// kubelet tries again after that.
const cniTimeout = 20

// clusterNode is what there is on a node of a Kubernetes cluster alone.
type clusterNode struct {
	options   *options
	log       *zap.Logger
	client    nodeapi.Client
	source    *cluster.Source
	locator   *pods.Locator
	installer *install.Installer // nil if the CNI plugin is not wanted
}

func (o *options) cluster(log *zap.Logger) (*clusterNode, error) {
	config, err := access.Config(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := nodeapi.New(config)
	if err != nil {
		return nil, err
	}
	n := &clusterNode{options: o, log: log, client: client, locator: o.locator()}
	settings := cluster.Config{
		Client: client, Reader: pods.Reader{Node: o.node, TrustDomain: o.trustDomain, Skips: o.skips, DNS: o.dns, Release: o.release}, MaxBypass: o.maxBypass, Log: log,
	}
	if o.cniBinDir != "" {
		if n.installer, err = o.installer(&cluster.PluginAccess{Client: client, Config: config, Namespace: o.namespace}, log); err != nil {
			return nil, err
		}
		settings.Enrolled = n.keepEnrolled
	}
	n.source, err = cluster.NewSource(settings)
	return n, err
}

func (o *options) locator() *pods.Locator {
	return pods.NewLocator(o.hostProc, cmp.Or(o.netnsDir, runtimePins))
}

func (o *options) installer(access *cluster.PluginAccess, log *zap.Logger) (*install.Installer, error) {
	binary := o.cniBinary
	if binary == "" {
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("the CNI plugin beside this program: %w", err)
		}
		binary = filepath.Join(filepath.Dir(own), cni.Type)
	}
	return install.New(install.Config{
		Binary: binary, BinDir: o.cniBinDir, ConfDir: o.cniConfDir,
		Entry: cni.Config{
			Type: cni.Type, Socket: o.cniSocket, SkipNamespaces: []string{"kube-system", o.namespace}, TimeoutSeconds: cniTimeout,
		},
		Kubeconfig: access.Kubeconfig,
		Log:        log,
	}), nil
}

func (n *clusterNode) keepEnrolled(namespaces []string) {
	if err := n.installer.KeepEnrolled(namespaces); err != nil {
		n.log.Error("the CNI plugin's list of enrolled namespaces", zap.Error(err))
	}
}

// run starts what else there is, and returns what says whether the node is
// ready for pods.
func (n *clusterNode) run(ctx context.Context, g *errgroup.Group, set *pods.Set) (ready func() bool) {
	ready = set.Synced
	if n.installer != nil {
		enroller := &cluster.Enroller{Source: n.source, Set: set, Locator: n.locator, Log: n.log}
		server := &cni.Server{Socket: n.options.cniSocket, Agent: enroller, Log: n.log}
		g.Go(func() error { return server.Run(ctx) })
		g.Go(func() error { return n.installer.Run(ctx) })
		ready = func() bool { return set.Synced() && n.installer.Installed() }
	}
	if n.options.removeTaint {
		g.Go(func() error { return cluster.RemoveTaint(ctx, n.client, n.options.node, taint, ready, n.log) })
	}
	return ready
}
