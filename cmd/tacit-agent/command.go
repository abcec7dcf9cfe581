package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/redirect/pods"
	"github.com/tacit-mesh/tacit/xds/model"
)

const help = `tacit-agent captures the traffic of this node's pods for tacit-proxy.

Pods whose namespace or pod carries the label tacit.mesh/dataplane=enabled get
rules and listening sockets in their network namespace. tacit-proxy connects to
agent.sock in --run-dir and gets the sockets.

With --kubernetes it reads which pods there are from the API, finds their
network namespaces by their processes, annotates those that are captured with
tacit.mesh/redirection=enabled, and says what goes wrong in events of the pod.
It installs the CNI plugin tacit-cni into --cni-bin-dir and --cni-conf-dir, so
that new pods are captured before their first container starts.

With --from it reads a directory of Kubernetes manifests, and finds network
namespaces as the files NAMESPACE_NAME in --netns-dir.

With --zds it takes ztunnel's place under Istio's CNI agent, which says what
pods there are, brings their network namespaces, and installs the rules. This
one then installs none, asks no API, and needs neither CAP_SYS_PTRACE nor
iptables.

With --dns-capture, DNS queries of pods to the servers in --dns-server are
redirected to tacit-proxy, too; those to other servers are not. A pod's
annotation tacit.mesh/dns-capture or ambient.istio.io/dns-capture, true or
false, overrules it. With --zds it says whether Istio's CNI agent redirects
queries, to whatever server, and is true by default, as there.

It needs CAP_SYS_ADMIN (to enter namespaces), CAP_NET_ADMIN and CAP_NET_RAW (for
rules, routes and sockets there), CAP_DAC_OVERRIDE and CAP_CHOWN (for the
proxy's directory), with --kubernetes CAP_SYS_PTRACE and the node's processes
(to find namespaces), and iptables with its -save and -restore programs.

When it ends, rules and listeners stay: the proxy goes on, and the next agent
takes over. "tacit-agent cleanup" takes all of it away.`

const example = `  tacit-agent --node node-1 --from manifests/ --netns-dir /run/netns \
    --run-dir /run/tacit --proxy-uid "$(id -u tacit-proxy)"

  tacit-agent --node "$NODE_NAME" --kubernetes --run-dir /run/tacit/agent \
    --proxy-uid 13371 --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d

  # Under Istio, in the place of ztunnel:
  tacit-agent --zds /var/run/ztunnel/ztunnel.sock --run-dir /run/tacit/agent --proxy-uid 13371

  # Leave nothing behind, once the agent has ended:
  tacit-agent cleanup --netns-dir /run/netns`

// options are the flags, as given.
type options struct {
	node        string
	from        string
	kubernetes  bool
	zds         string
	kubeconfig  string
	hostProc    string
	removeTaint bool
	namespace   string
	cniBinDir   string
	cniConfDir  string
	cniBinary   string
	cniSocket   string
	release     bool
	netnsDir    string
	runDir      string
	proxyUID    int
	proxyCgroup string
	skips       model.SkipSettings
	dns         pods.DNSSettings
	dnsServers  []string
	trustDomain string
	iptables    string
	maxBypass   time.Duration
	metrics     string
	// listening is told the address of metrics; for tests, which listen on
	// port 0.
	listening func(addr string)
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "tacit-agent {--node NAME {--kubernetes | --from DIR --netns-dir DIR} | --zds SOCKET} --run-dir DIR --proxy-uid UID",
		Short:   "Captures the traffic of this node's pods and hands it to tacit-proxy",
		Long:    help,
		Example: example,
		Args:    cobra.NoArgs,
	}
	skips := cli.Skips(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var problems [4]error
		o.skips, problems[0] = skips()
		if _, err := pods.ParseBackend(o.iptables); err != nil {
			problems[1] = fmt.Errorf("--iptables: %w", err)
		}
		if o.proxyUID < 0 {
			problems[2] = fmt.Errorf("--proxy-uid=%d: want the number of a user", o.proxyUID)
		}
		problems[3] = o.exclusive(cmd)
		if err := cli.Check(cmd, append(o.required(), "run-dir", "proxy-uid"), problems[:]...); err != nil {
			return err
		}
		return o.run(cmd.Context(), logger())
	}
	o.sharedFlags(cmd.PersistentFlags())
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "`directory` of Kubernetes manifests, in the place of --kubernetes")
	f.StringVar(&o.zds, "zds", "", "`socket` of Istio's CNI agent, which says which pods there are, in the place of --kubernetes")
	f.StringVar(&o.cniBinary, "cni-binary", "", "`file` of the CNI plugin to install; tacit-cni beside this program if empty")
	f.BoolVar(&o.removeTaint, "remove-taint", false, "take the taint "+taint+" off the node once the agent is ready")
	f.BoolVar(&o.release, "release", false, "let all pods go, whatever their labels say, without cutting their connections; before an uninstallation")
	f.IntVar(&o.proxyUID, "proxy-uid", 0, "`number` of the user that tacit-proxy runs as")
	f.StringVar(&o.proxyCgroup, "proxy-cgroup", "", "control `group` that tacit-proxy must be in; not checked if empty")
	f.StringVar(&o.trustDomain, "trust-domain", model.DefaultTrustDomain, "`domain` of all identities: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
	f.DurationVar(&o.maxBypass, "max-bypass", bypass.DefaultMax, "longest bypass (tacit bypass) that is accepted, as tacitd has it")
	f.BoolVar(&o.dns.All, "dns-capture", false, "let tacit-proxy answer the DNS queries of pods; true by default with --zds alone")
	f.StringSliceVar(&o.dnsServers, "dns-server", nil, "`address` of the cluster's DNS, queries to which --dns-capture is about; may be given several times")
	f.StringVar(&o.metrics, "metrics", "", "`address` for Prometheus, such as :15013; none if empty")
	cmd.AddCommand(cleanupCommand(&o), factsCommand(&o))
	cmd.CompletionOptions.DisableDefaultCmd = true
	return cmd
}

// sharedFlags are those of cleanup, too.
func (o *options) sharedFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.kubernetes, "kubernetes", false, "read the node's pods from the Kubernetes API")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says how to reach the Kubernetes API; the pod's own account if empty")
	f.StringVar(&o.node, "node", "", "`name` of this node, as in the pods' spec.nodeName")
	f.StringVar(&o.netnsDir, "netns-dir", "", "`directory` of the pods' network namespaces: files named NAMESPACE_NAME, or with --kubernetes where the container runtime pins them (then "+runtimePins+" if empty)")
	f.StringVar(&o.namespace, "namespace", "tacit-system", "`namespace` of Tacit's own pods: like those of kube-system, they never wait for the agent")
	f.StringVar(&o.runDir, "run-dir", "", "`directory` for agent.sock, mode 0700, of the proxy's user; made if absent")
	f.StringVar(&o.iptables, "iptables", string(pods.BackendAuto), "`backend` of the rules: auto (what a pod already uses, else this node's default), nft or legacy")
	f.StringVar(&o.cniBinDir, "cni-bin-dir", "", "`directory` of the node's CNI plugins, in which tacit-cni is installed; not installed if empty")
	f.StringVar(&o.cniConfDir, "cni-conf-dir", "", "`directory` of the node's network configurations, for --cni-bin-dir")
	f.StringVar(&o.cniSocket, "cni-socket", "/run/tacit/cni/cni.sock", "`file` of the socket for the CNI plugin, the same path on the node and for the agent")
	f.StringVar(&o.hostProc, "host-proc", "/proc", "`directory` with the node's processes, for --kubernetes")
}

// taint is what a node may start with, so that no pod comes before the agent.
const taint = "tacit.mesh/agent-not-ready"

// runtimePins is where containerd and CRI-O pin network namespaces.
const runtimePins = "/run/netns"

// required are the flags without which there are no pods to be found.
func (o *options) required() []string {
	if o.zds != "" {
		return nil
	}
	if o.kubernetes {
		return []string{"node"}
	}
	return []string{"node", "from", "netns-dir"}
}

// exclusive refuses flags that would have no effect.
func (o *options) exclusive(cmd *cobra.Command) error {
	for _, name := range []string{"kubeconfig", "host-proc", "remove-taint", "release"} {
		if cmd.Flag(name).Changed && !o.kubernetes {
			return fmt.Errorf("--%s has no effect without --kubernetes", name)
		}
	}
	if (o.cniBinDir == "") != (o.cniConfDir == "") {
		return errors.New("--cni-bin-dir and --cni-conf-dir belong together: give both, or none to install no CNI plugin")
	}
	if err := o.checkDNS(cmd); err != nil {
		return err
	}
	if o.kubernetes && o.from != "" {
		return errors.New("--from and --kubernetes are two sources of pods: give one of them")
	}
	if o.zds != "" && (o.kubernetes || o.from != "") {
		return errors.New("--zds is a source of pods by itself: give neither --from nor --kubernetes with it")
	}
	if o.zds != "" && o.cniBinDir != "" {
		return errors.New("--cni-bin-dir has no effect with --zds: Istio's CNI agent installs its own plugin")
	}
	return nil
}

// checkDNS reads the flags about DNS.
func (o *options) checkDNS(cmd *cobra.Command) error {
	if o.zds != "" {
		o.dns.All = o.dns.All || !cmd.Flag("dns-capture").Changed
		if o.dnsServers != nil {
			return errors.New("--dns-server has no effect with --zds: Istio's CNI agent says which queries are redirected")
		}
		return nil
	}
	for _, text := range o.dnsServers {
		server, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("--dns-server=%s: want an address, such as 10.96.0.10", text)
		}
		o.dns.Servers = append(o.dns.Servers, server.Unmap())
	}
	if o.dns.All && len(o.dns.Servers) == 0 {
		return errors.New("--dns-capture needs --dns-server: the addresses of the cluster's DNS, as in its pods' resolv.conf")
	}
	return nil
}

func logger() *zap.Logger {
	c := zap.NewProductionEncoderConfig()
	c.TimeKey, c.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(c), zapcore.Lock(os.Stderr), zapcore.InfoLevel))
}
