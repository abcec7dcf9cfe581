// Command tacit-proxy is the data plane of a node: it carries the traffic of
// the node's enrolled pods, encrypted, authenticated and authorized. It needs
// no privilege; tacit-agent makes its sockets.
package main

import (
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/flows"
)

func main() { cli.Main(command()) }

const help = `tacit-proxy carries the traffic of this node's enrolled pods: mutual TLS with
SPIFFE identities between the nodes, authorization at the destination.

It runs as a user of its own, without capabilities. tacit-agent gives it
sockets inside the pods through --agent-socket; tacitd gives it workloads,
services and policies (--xds) and signs its certificates (--ca). It proves
itself to tacitd with the token in --token and knows tacitd by the roots in
--root; both files are read again when they change. With --spire in the place
of --ca, certificates come from SPIRE's agent on this node, which must have
this process among its authorized_delegates. With --workload-api they are those
that a SPIFFE Workload API gives to this process itself, for the pods of these
identities: for a machine with one workload, where there is no delegate.

The control plane may also be Istio's: name istiod with --xds, --ca and
--server-name, its cluster with --cluster-id and this proxy's pod with --pod.
The token is then one for the audience istio-ca that is bound to that pod, and
its service account one of istiod's CA_TRUSTED_NODE_ACCOUNTS.

Of pods whose DNS queries are captured (tacit-agent --dns-capture) it answers
those about services. Others it forwards: by UDP from here to the servers named
in --dns-upstream, by TCP from the pod to the server that this has chosen.

On SIGTERM, or when a newer proxy takes over, it accepts nothing more: new
connections go to the next proxy, or wait for it. Live ones go on for at most
--drain.

A line of JSON on standard error tells the end of each connection, and why one
was denied. Ask a running proxy with "tacit status", "tacit connections" and
"tacit explain".`

const example = `  tacit-proxy --node node-1 --agent-socket /run/tacit/agent.sock \
    --xds tacitd.example:15012 --ca tacitd.example:15012 --root ca.crt --token token

  # Under Istio, in the place of ztunnel:
  tacit-proxy --node node-1 --agent-socket /run/tacit/agent.sock \
    --xds istiod.istio-system.svc:15012 --ca istiod.istio-system.svc:15012 \
    --server-name istiod.istio-system.svc --cluster-id Kubernetes \
    --pod istio-system/ztunnel-x7k2p --direct-local=false \
    --root /var/run/secrets/istio/root-cert.pem --token /var/run/secrets/tokens/istio-token`

// maxFlows bounds the memory that --flows may ask for to 0.8 GB.
const maxFlows = 1 << 20

// options are the flags, as given.
type options struct {
	node         string
	agentSocket  string
	xds, ca      string
	report       string
	spire        string
	workloadAPI  string
	crls         []string
	serverName   string
	root, token  string
	clusterID    string
	network      string
	onDemand     bool
	pod          string
	adminSocket  string
	metrics      string
	readiness    string
	istioAdmin   string
	dnsUpstream  string
	domain       string
	drain        time.Duration
	linger       bool
	lifetime     time.Duration
	grace        time.Duration
	podShare     int
	directLocal  bool
	tell         bool
	tellIdentity bool
	flows        int
	audit        cli.Audit
	otlp         otlp.Flags
	tracing      bool
	sampling     float64
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "tacit-proxy --node NAME --agent-socket PATH --xds HOST:PORT {--ca HOST:PORT | --spire SOCKET | --workload-api SOCKET} --root FILE --token FILE",
		Short:   "Carries the traffic of this node's pods, encrypted and authorized",
		Long:    help,
		Example: example,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Check(cmd, []string{"node", "xds", "root", "token"}, slices.Concat(o.check(), o.checkIdentity(), o.checkControlPlane(), []error{o.audit.Check(), o.otlp.Check(), o.checkTracing()})...); err != nil {
				return err
			}
			if err := confine(); err != nil {
				return err
			}
			return run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	o.controlPlaneFlags(f)
	o.identityFlags(f)
	f.StringVar(&o.node, "node", "", "`name` of this node, as in the pods' spec.nodeName")
	f.StringVar(&o.agentSocket, "agent-socket", "/run/tacit/agent.sock", "`socket` of tacit-agent")
	f.StringVar(&o.adminSocket, "admin-socket", admin.DefaultPath, "`socket` for the tacit command")
	f.StringVar(&o.metrics, "metrics", ":15020", "`address` for Prometheus, at /metrics and /stats/prometheus")
	f.StringVar(&o.readiness, "readiness", ":15021", "`address` for readiness, at /healthz/ready")
	f.StringVar(&o.istioAdmin, "istio-admin", "", "loopback `address`, such as 127.0.0.1:15000, at which the proxy answers istioctl ztunnel-config, and with profiles; none if empty")
	f.StringVar(&o.dnsUpstream, "dns-upstream", "/etc/resolv.conf", "`file` that names the DNS servers to ask what the mesh does not know, for pods whose DNS queries are captured; none of them is answered if empty")
	f.StringVar(&o.domain, "cluster-domain", "cluster.local", "`domain` of the cluster: services are SERVICE.NAMESPACE.svc.DOMAIN")
	f.DurationVar(&o.drain, "drain", time.Hour, "how long live connections may go on after SIGTERM")
	f.BoolVar(&o.linger, "linger", false, "once a newer proxy has taken over and the drain is done, wait for SIGTERM instead of ending, lest something starts this one again")
	f.IntVar(&o.podShare, "connections-per-pod", 0, "`number` of connections from one pod at a time, and as many to it; 0: by the limit of open files")
	f.BoolVar(&o.directLocal, "direct-local", true, "join connections between two pods of this node, once authorized, without encrypting their bytes in between")
	f.IntVar(&o.flows, "flows", flows.DefaultSize, "`number` of ended connections and requests to remember for tacit flows, tap and coverage, 0.3 KB each, more where each is of other pods; 0: none")
	o.audit.Flags(f)
	o.otlp.Flags(f)
	o.tracingFlags(f)
	f.BoolVar(&o.tell, "tell-policies", false, "name the policy in the answer to a request of HTTP that it denies")
	f.BoolVar(&o.tellIdentity, "tell-identity", false, "put the caller's identity into X-Forwarded-Client-Cert of each request that a policy about requests covers, in the place of what the caller says there")
	return cmd
}

// check returns what no proxy could work with.
func (o *options) check() (problems []error) {
	for name, address := range map[string]string{"xds": o.xds, "ca": o.ca, "report": o.report} {
		if _, _, err := net.SplitHostPort(address); address != "" && err != nil {
			problems = append(problems, fmt.Errorf("--%s=%s: want HOST:PORT, such as tacitd.example:15012", name, address))
		}
	}
	if o.drain < 0 {
		problems = append(problems, fmt.Errorf("--drain=%v: want 0 or more, such as 1h", o.drain))
	}
	if o.lifetime <= 0 {
		problems = append(problems, fmt.Errorf("--certificate-ttl=%v: want more than 0, such as 24h", o.lifetime))
	}
	if o.grace < 0 {
		problems = append(problems, fmt.Errorf("--certificate-grace=%v: want 0 or more, such as 1h", o.grace))
	}
	if o.flows < 0 || o.flows > maxFlows {
		problems = append(problems, fmt.Errorf("--flows=%d: want a number from 0 to %d", o.flows, maxFlows))
	}
	if o.podShare < 0 {
		problems = append(problems, fmt.Errorf("--connections-per-pod=%d: want 0 or more", o.podShare))
	}
	return problems
}

// confine takes from this process what it never needs: no core file or other
// user's debugger sees its keys, and no program it could start gains anything.
func confine() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	return nil
}
