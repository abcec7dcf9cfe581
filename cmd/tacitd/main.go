// Command tacitd is Tacit's control plane: it builds the mesh from Kubernetes
// manifests, sends it to the nodes' proxies, and signs their certificates.
package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/internal/cli"
	"github.com/tacit-mesh/tacit/xds/build"
	"github.com/tacit-mesh/tacit/xds/model"
)

func main() { cli.Main(command()) }

const help = `tacitd builds the mesh from Kubernetes manifests, sends it to the proxies of
all nodes (xDS), and signs their certificates (a built-in CA).

It reads every *.yaml, *.yml and *.json below --from, and reads again whatever
changes: Pod, Namespace, Node, Service, EndpointSlice, AuthorizationPolicy and
PeerAuthentication (security.istio.io, v1 and v1beta1). What it cannot read is
an error with file, line and field, in the log and in --status-file; the last
good version of that object stays in force. A directory in which a policy
cannot be read at the start is not served at all until that is mended.

A node's proxy proves itself with a token, sent as "authorization: Bearer
TOKEN". The file --tokens has a line "TOKEN NODE" for each, mode 0600, and may
change at any time. A node gets certificates only for the service accounts of
the enrolled pods that run on it.

--ca-dir holds ca.key and ca.crt. They are made if they are not there, and
never written over. ca.crt is what proxies need as --root. To sign with a CA
of your own, put its key there, and its certificate followed by those above it.`

const example = `  # A token for each node, then the control plane:
  (umask 077; for n in node-1 node-2; do echo "$(openssl rand -hex 32) $n"; done > tokens)
  tacitd --from manifests/ --listen 198.18.0.1:15012 --ca-dir ca/ --tokens tokens

  # Why is a policy not enforced as written?
  tacitd ... --status-file status.json &
  jq '.policies[] | select(.messages)' status.json`

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "tacitd --from DIR --tokens FILE --ca-dir DIR",
		Short:   "The control plane of Tacit",
		Long:    help,
		Example: example,
		Args:    cobra.NoArgs,
	}
	skips := cli.Skips(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		o.settings.Skips, err = skips()
		if err := cli.Check(cmd, []string{"from", "ca-dir", "tokens"}, err, o.check()); err != nil {
			return err
		}
		log, err := zap.NewProduction(zap.WithCaller(false))
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		defer func() { _ = log.Sync() }()
		return run(cmd.Context(), o, log)
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "`directory` of Kubernetes manifests")
	f.StringVar(&o.listen, "listen", ":15012", "`address` for the proxies, xDS and certificates alike")
	f.StringVar(&o.caDir, "ca-dir", "", "`directory` of the CA's key and certificate")
	f.StringVar(&o.tokens, "tokens", "", "`file` of lines \"TOKEN NODE\", mode 0600")
	f.StringVar(&o.serverName, "server-name", "tacitd.tacit-system.svc", "DNS `name` in tacitd's own certificate")
	f.StringVar(&o.settings.TrustDomain, "trust-domain", model.DefaultTrustDomain, "`domain` of all identities: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
	f.StringVar(&o.settings.RootNamespace, "root-namespace", build.DefaultRootNamespace, "`namespace` whose policies cover the whole mesh")
	f.DurationVar(&o.maxTTL, "max-certificate-ttl", ca.DefaultTTL, "longest life of a proxy's certificate")
	f.StringVar(&o.statusFile, "status-file", "", "`file` to write the status of policies and manifests to, as JSON, on each change")
	f.StringVar(&o.metrics, "metrics", "", "`address` for Prometheus, such as :15014; none if empty")
	return cmd
}

// options are what the flags say.
type options struct {
	from, listen, caDir, tokens, serverName string
	settings                                build.Settings
	maxTTL                                  time.Duration
	statusFile, metrics                     string
	// listening is told the address; for tests, which listen on port 0.
	listening func(addr string)
}

func (o *options) check() error {
	if o.maxTTL <= 0 {
		return errors.New("--max-certificate-ttl: want more than 0, such as 24h")
	}
	return nil
}
