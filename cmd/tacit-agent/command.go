package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/internal/httpserve"
	"github.com/tacit-mesh/tacit/redirect/handoff"
	"github.com/tacit-mesh/tacit/redirect/netns"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/xds/model"
)

const help = `tacit-agent captures the traffic of this node's pods for tacit-proxy.

It reads which pods there are from a directory of Kubernetes manifests. Those
whose namespace or pod carries the label tacit.mesh/dataplane=enabled get rules
and listening sockets in their network namespace, which is found as the file
NAMESPACE_NAME in --netns-dir. tacit-proxy connects to agent.sock in --run-dir
and gets the sockets.

It needs CAP_SYS_ADMIN (to enter namespaces), CAP_NET_ADMIN and CAP_NET_RAW (for
rules, routes and sockets there), CAP_DAC_OVERRIDE and CAP_CHOWN (for the
proxy's directory), and iptables with its -save and -restore programs.

When it ends, rules and listeners stay: the proxy goes on, and the next agent
takes over. "tacit-agent cleanup" takes all of it away.`

const example = `  tacit-agent --node node-1 --from manifests/ --netns-dir /run/netns \
    --run-dir /run/tacit --proxy-uid "$(id -u tacit-proxy)"

  # Leave nothing behind, once the agent has ended:
  tacit-agent cleanup --netns-dir /run/netns`

// options are the flags, as given.
type options struct {
	node        string
	from        string
	netnsDir    string
	runDir      string
	proxyUID    int
	proxyCgroup string
	skips       model.SkipSettings
	trustDomain string
	iptables    string
	metrics     string
	// listening is told the address of metrics; for tests, which listen on
	// port 0.
	listening func(addr string)
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "tacit-agent --node NAME --from DIR --netns-dir DIR --run-dir DIR --proxy-uid UID",
		Short:   "Captures the traffic of this node's pods and hands it to tacit-proxy",
		Long:    help,
		Example: example,
		Args:    cobra.NoArgs,
	}
	skips := cli.Skips(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var problems [3]error
		o.skips, problems[0] = skips()
		if _, err := pods.ParseBackend(o.iptables); err != nil {
			problems[1] = fmt.Errorf("--iptables: %w", err)
		}
		if o.proxyUID < 0 {
			problems[2] = fmt.Errorf("--proxy-uid=%d: want the number of a user", o.proxyUID)
		}
		if err := cli.Check(cmd, []string{"node", "from", "netns-dir", "run-dir", "proxy-uid"}, problems[:]...); err != nil {
			return err
		}
		return o.run(cmd.Context(), logger())
	}
	cmd.PersistentFlags().StringVar(&o.netnsDir, "netns-dir", "", "`directory` of the pods' network namespaces, files named NAMESPACE_NAME")
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "`directory` of Kubernetes manifests")
	f.StringVar(&o.node, "node", "", "`name` of this node, as in the pods' spec.nodeName")
	f.StringVar(&o.runDir, "run-dir", "", "`directory` for agent.sock, mode 0700, of the proxy's user; made if absent")
	f.IntVar(&o.proxyUID, "proxy-uid", 0, "`number` of the user that tacit-proxy runs as")
	f.StringVar(&o.proxyCgroup, "proxy-cgroup", "", "control `group` that tacit-proxy must be in; not checked if empty")
	f.StringVar(&o.trustDomain, "trust-domain", model.DefaultTrustDomain, "`domain` of all identities: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
	f.StringVar(&o.iptables, "iptables", string(pods.BackendAuto), "`backend` of the rules: auto (what a pod already uses, else this node's default), nft or legacy")
	f.StringVar(&o.metrics, "metrics", "", "`address` for Prometheus, such as :15013; none if empty")
	cmd.AddCommand(cleanupCommand(&o))
	cmd.CompletionOptions.DisableDefaultCmd = true
	return cmd
}

func (o *options) run(ctx context.Context, log *zap.Logger) error {
	defer func() { _ = log.Sync() }()
	g, gctx := errgroup.WithContext(ctx)
	server := handoff.New(handoff.Config{
		Socket: filepath.Join(o.runDir, "agent.sock"), ProxyUID: o.proxyUID, ProxyCgroup: o.proxyCgroup, Log: log,
	})
	set := pods.New(pods.Config{Sockets: server, Backend: pods.Backend(o.iptables), Log: log})
	var source pods.Source = &pods.Manifests{
		Dir: o.from, NetNSDir: o.netnsDir, Node: o.node, TrustDomain: o.trustDomain, Skips: o.skips, Log: log,
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
		g.Go(func() error { return httpserve.Run(gctx, listener, handler(set, server)) })
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

func cleanupCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup --netns-dir DIR",
		Short: "Takes away everything that tacit-agent ever made in the pods' network namespaces",
		Long: `cleanup takes away everything that tacit-agent ever made in the network
namespaces of --netns-dir, and nothing else. Connections that are captured
break; to let pods go without that, opt them out while the agent runs.`,
		Example: `  tacit-agent cleanup --netns-dir /run/netns`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Check(cmd, []string{"netns-dir"}); err != nil {
				return err
			}
			return o.cleanup(cmd.Context())
		},
	}
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
