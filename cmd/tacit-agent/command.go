package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/xds/model"
)

// options are the flags, as given.
type options struct {
	node        string
	from        string
	netnsDir    string
	runDir      string
	proxyUID    int
	proxyCgroup string
	skips       string
	skipPorts   string
	trustDomain string
	iptables    string
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "tacit-agent --node NAME --from DIR --netns-dir DIR --run-dir DIR --proxy-uid UID",
		Short: "Captures the traffic of this node's pods and hands it to tacit-proxy",
		Long: `tacit-agent captures the traffic of this node's pods for tacit-proxy.

It reads which pods there are from a directory of Kubernetes manifests. Those
whose namespace or pod carries the label tacit.mesh/dataplane=enabled get rules
and listening sockets in their network namespace, which is found as the file
NAMESPACE_NAME in --netns-dir. tacit-proxy connects to agent.sock in --run-dir
and gets the sockets.

It needs CAP_SYS_ADMIN (to enter namespaces), CAP_NET_ADMIN and CAP_NET_RAW (for
rules, routes and sockets there), CAP_DAC_OVERRIDE and CAP_CHOWN (for the proxy's
directory), and iptables with its -save and -restore programs. When it ends, rules and listeners stay: the proxy goes on,
and the next agent takes over. "tacit-agent cleanup" takes all of it away.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	cmd.PersistentFlags().StringVar(&o.netnsDir, "netns-dir", "", "directory of the pods' network namespaces, files named NAMESPACE_NAME")
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "directory of Kubernetes manifests")
	f.StringVar(&o.node, "node", "", "name of this node, as in the pods' spec.nodeName")
	f.StringVar(&o.runDir, "run-dir", "", "directory for agent.sock, mode 0700, of the proxy's user; made if absent")
	f.IntVar(&o.proxyUID, "proxy-uid", -1, "user that tacit-proxy runs as")
	f.StringVar(&o.proxyCgroup, "proxy-cgroup", "", "control group that tacit-proxy must be in (default: not checked)")
	f.StringVar(&o.skips, "skips", string(model.SkipsAny), "which skip annotations are accepted: any, listed or none")
	f.StringVar(&o.skipPorts, "skip-ports", "", `ports that "--skips listed" accepts, such as 5432,9000-9100`)
	f.StringVar(&o.trustDomain, "trust-domain", model.DefaultTrustDomain, "SPIFFE trust domain of the pods")
	f.StringVar(&o.iptables, "iptables", string(pods.BackendAuto), "backend of the rules: auto (what a pod already uses, else this node's default), nft or legacy")
	for _, name := range []string{"from", "node", "run-dir", "proxy-uid"} {
		cmd.MarkFlagRequired(name)
	}
	cmd.MarkPersistentFlagRequired("netns-dir")
	cmd.AddCommand(cleanupCommand(&o))
	return cmd
}

func (o *options) run(ctx context.Context) error {
	mode, err1 := model.ParseSkipMode(o.skips)
	listed, err2 := model.ParsePorts(o.skipPorts)
	backend, err3 := pods.ParseBackend(o.iptables)
	var err4 error
	if o.proxyUID < 0 {
		err4 = errors.New("--proxy-uid: want the number of a user")
	}
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	log := logger()
	defer log.Sync()
	server := handoff.New(handoff.Config{
		Socket: filepath.Join(o.runDir, "agent.sock"), ProxyUID: o.proxyUID, ProxyCgroup: o.proxyCgroup, Log: log,
	})
	set := pods.New(pods.Config{Sockets: server, Backend: backend, Log: log})
	var source pods.Source = &pods.Manifests{
		Dir: o.from, NetNSDir: o.netnsDir, Node: o.node, TrustDomain: o.trustDomain,
		Skips: model.SkipSettings{Mode: mode, Listed: listed}, Log: log,
	}

	g, gctx := errgroup.WithContext(ctx)
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

func cleanupCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cleanup --netns-dir DIR",
		Short: "Takes away everything that tacit-agent ever made in the pods' network namespaces",
		Long: `cleanup takes away everything that tacit-agent ever made in the network
namespaces of --netns-dir, and nothing else. Connections that are captured
break; to let pods go without that, opt them out while the agent runs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.cleanup(cmd.Context()) },
	}
	cmd.Flags().StringVar(&o.from, "from", "", "as for the agent; not needed, what is ours is known by its marks")
	return cmd
}

func (o *options) cleanup(ctx context.Context) error {
	entries, err := os.ReadDir(o.netnsDir)
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	var errs []error
	for _, e := range entries {
		err := pods.Cleanup(ctx, filepath.Join(o.netnsDir, e.Name()))
		if !errors.Is(err, netns.ErrNotNamespace) { // a file that is left of one that is gone
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func logger() *zap.Logger {
	c := zap.NewProductionEncoderConfig()
	c.TimeKey, c.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(c), zapcore.Lock(os.Stderr), zapcore.InfoLevel))
}
