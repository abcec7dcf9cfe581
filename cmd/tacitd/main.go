// Command tacitd is Tacit's control plane: it builds the mesh from the objects
// of a Kubernetes cluster, or from the same as manifests, sends it to the
// nodes' proxies, and signs their certificates.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/internal/bypass"
	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/internal/kube"
	"github.com/tacit-mesh/tacit/internal/otlp"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/jwks"
	"github.com/tacit-mesh/tacit/xds/meshconfig"
	"github.com/tacit-mesh/tacit/xds/model"
)

func main() { cli.Main(command()) }

const help = `tacitd builds the mesh from Kubernetes objects, sends it to the proxies of all
nodes (xDS), and signs their certificates (a built-in CA).

In a cluster (--kubernetes) it follows Pods, Namespaces, Nodes, Services,
EndpointSlices, ServiceAccounts and the policies of security.istio.io, and
serves nothing before it has listed all of them once. Several replicas may run:
each serves all proxies, one, which holds the Lease tacitd, writes the status
condition tacit.mesh/Enforced to policies. A proxy proves itself with the token
of its pod, which the API server is asked about; it gets certificates only for
the service accounts of the enrolled pods on that pod's node. The CA's key is
made once, into the Secret tacit-ca (tls.key, tls.crt, ca.crt), and replaced by
"tacit ca rotate" alone; to sign with a CA of your own, an intermediate perhaps,
create that Secret first. It is followed when it changes. The ConfigMap
tacit-ca-root has what proxies need as --root.

Without a cluster (--from) it reads every *.yaml, *.yml and *.json below a
directory, and reads again whatever changes. What it cannot read is an error
with file, line and field, in the log and in --status-file; the last good
version of that object stays in force. A directory in which a policy cannot be
read at the start is not served at all until that is mended. A node's proxy
proves itself with a token, sent as "authorization: Bearer TOKEN". The file
--tokens has a line "TOKEN NODE" for each, mode 0600, and may change at any
time. --ca-dir holds ca.key and ca.crt. They are made if they are not there, and
replaced by "tacit ca rotate" alone. ca.crt is what proxies need as --root. To
sign with a CA of your own, put its key there, and its certificate followed by
those above it; or tls.key, tls.crt and ca.crt, as Kubernetes and cert-manager
name them. What is there is followed when it changes.`

const example = `  # In a cluster, as a pod:
  tacitd --kubernetes --metrics :15014

  # From a machine that has a kubeconfig, writing nothing to policies:
  tacitd --kubernetes --kubeconfig ~/.kube/config --no-status

  # Without a cluster: a token for each node, then the control plane.
  (umask 077; for n in node-1 node-2; do echo "$(openssl rand -hex 32) $n"; done > tokens)
  tacitd --from manifests/ --listen 198.18.0.1:15012 --ca-dir ca/ --tokens tokens

  # Why is a policy not enforced as written?
  kubectl get authorizationpolicies -A -o yaml | grep -A9 tacit.mesh/Enforced
  jq '.policies[] | select(.messages)' status.json  # of --status-file`

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "tacitd --kubernetes | --from DIR --tokens FILE --ca-dir DIR",
		Short:   "The control plane of Tacit",
		Long:    help,
		Example: example,
		Args:    cobra.NoArgs,
	}
	skips := cli.Skips(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		o.settings.Skips, err = skips()
		required := []string{"from", "ca-dir", "tokens"}
		if o.kubernetes {
			required = nil
		}
		if err := cli.Check(cmd, required, err, o.check(), meshconfig.Read(o.meshConfig, &o.settings, os.ReadFile)); err != nil {
			return err
		}
		if !cmd.Flag("root-namespace").Changed {
			o.settings.RootNamespace = o.namespace
		}
		log, err := zap.NewProduction(zap.WithCaller(false))
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		defer func() { _ = log.Sync() }()
		kube.LogTo(log)
		return run(cmd.Context(), o, log)
	}
	f := cmd.Flags()
	o.clusterFlags(f)
	f.StringVar(&o.from, "from", "", "`directory` of Kubernetes manifests")
	o.sightFlags(f)
	f.StringVar(&o.meshConfig, "mesh-config", "", "`file` with what holds for the whole mesh: extensionProviders, pathNormalization and defaultConfig.gatewayTopology.numTrustedProxies as in Istio's MeshConfig, trustedProxies, rateLimitStore")
	f.StringVar(&o.listen, "listen", ":15012", "`address` for the proxies, xDS and certificates alike")
	f.StringVar(&o.caDir, "ca-dir", "", "`directory` of the CA's key and certificate; with --kubernetes, instead of the Secret")
	f.StringVar(&o.tokens, "tokens", "", "`file` of lines \"TOKEN NODE\", mode 0600")
	f.StringVar(&o.serverName, "server-name", "tacitd.tacit-system.svc", "DNS `name` in tacitd's own certificate")
	f.StringVar(&o.workloadAPI, "workload-api", "", "`socket` of a SPIFFE Workload API, such as SPIRE's socket_path, which gives tacitd's own certificate in the place of its CA; its entry is to have --server-name as a DNS name")
	f.StringVar(&o.spiffeID, "spiffe-id", "", "`id` that tacitd has from --workload-api; by default that of account tacitd in --namespace")
	f.StringVar(&o.settings.TrustDomain, "trust-domain", model.DefaultTrustDomain, "`domain` of all identities: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
	f.StringVar(&o.settings.RootNamespace, "root-namespace", build.DefaultRootNamespace, "`namespace` whose policies cover the whole mesh; --namespace unless it is set")
	f.DurationVar(&o.maxTTL, "max-certificate-ttl", ca.DefaultTTL, "longest life of a proxy's certificate")
	f.DurationVar(&o.jwksRefresh, "jwks-refresh", jwks.DefaultRefresh, "how often issuers' key sets are fetched again, at least 1s: a token of a new key is refused until then, so issuers announce keys before they use them")
	f.DurationVar(&o.settings.MaxBypass, "max-bypass", bypass.DefaultMax, "longest bypass (tacit bypass) that is accepted; tacit-agent is to have the same")
	o.audit.Flags(f)
	o.otlp.Flags(f)
	f.StringVar(&o.statusFile, "status-file", "", "`file` to write the status of policies and manifests to, as JSON, on each change")
	f.StringVar(&o.metrics, "metrics", "", "`address` for Prometheus, at /metrics, and readiness, at /healthz/ready, such as :15014; none if empty")
	return cmd
}

// options are what the flags say.
type options struct {
	from, listen, caDir, tokens, serverName string
	settings                                build.Settings
	meshConfig                              string
	workloadAPI, spiffeID                   string
	maxTTL, jwksRefresh                     time.Duration
	statusFile, metrics                     string
	audit                                   cli.Audit
	otlp                                    otlp.Flags
	clusterOptions
	// listening is told the addresses; for tests, which listen on port 0.
	listening func(proxies, metrics string)
	sightOptions
}

func (o *options) check() error {
	var errs []error
	if o.maxTTL <= 0 {
		errs = append(errs, errors.New("--max-certificate-ttl: want more than 0, such as 24h"))
	}
	if o.jwksRefresh < time.Second {
		errs = append(errs, fmt.Errorf("--jwks-refresh=%v: want at least 1s, such as 5m", o.jwksRefresh))
	}
	errs = append(errs, o.audit.Check(), o.otlp.Check())
	if o.settings.MaxBypass <= 0 {
		errs = append(errs, errors.New("--max-bypass: want more than 0, such as 24h; who may bypass at all is a matter of RBAC"))
	}
	switch {
	case o.kubernetes && o.from != "":
		errs = append(errs, errors.New("--from has no effect with --kubernetes: leave out one of them"))
	case o.kubernetes && o.tokens != "":
		errs = append(errs, errors.New("--tokens has no effect with --kubernetes: the cluster's own tokens count"))
	case !o.kubernetes && o.kubeconfig != "":
		errs = append(errs, errors.New("--kubeconfig has no effect without --kubernetes"))
	}
	return errors.Join(append(errs, o.checkWorkloadAPI(), o.checkUI(o.kubernetes))...)
}
