package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/identity/spire"
	"github.com/tacit-mesh/tacit/identity/workloadapi"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/proxy/telemetry"
)

// checkIdentity returns what is wrong with the flags about certificates.
func (o *options) checkIdentity() (problems []error) {
	switch sources := slices.DeleteFunc([]string{o.ca, o.spire, o.workloadAPI}, func(s string) bool { return s == "" }); {
	case len(sources) == 0:
		problems = append(problems, errors.New("nobody gives certificates: name the certificate authority with --ca, SPIRE's agent with --spire, or a Workload API with --workload-api"))
	case len(sources) > 1:
		problems = append(problems, errors.New("--ca, --spire and --workload-api: certificates come from one of them"))
	}
	if o.spire != "" && !filepath.IsAbs(o.spire) {
		problems = append(problems, fmt.Errorf("--spire=%s: want the absolute path of the socket, such as /run/spire/admin/agent.sock", o.spire))
	}
	if o.workloadAPI != "" && !filepath.IsAbs(o.workloadAPI) {
		problems = append(problems, fmt.Errorf("--workload-api=%s: want the absolute path of the socket, such as /run/spire/sockets/agent.sock", o.workloadAPI))
	}
	return problems
}

// newIdentities makes the store of certificates, and what they come from.
func newIdentities(o options, log *zap.Logger) (*identity.Store, io.Closer, error) {
	report := identity.WithFailures(logFailures(log))
	if o.spire != "" {
		source, err := spire.New(spire.Config{Socket: o.spire})
		if err != nil {
			return nil, nil, fmt.Errorf("SPIRE agent %s: %w", o.spire, err)
		}
		return identity.NewStore(source, report, identity.WithPushedRenewals(), identity.WithSelectors(spire.Selectors)), source, nil
	}
	if o.workloadAPI != "" {
		source, err := workloadapi.New(workloadapi.Config{Socket: o.workloadAPI})
		if err != nil {
			return nil, nil, err
		}
		return identity.NewStore(source, report, identity.WithPushedRenewals()), source, nil
	}
	ca, err := caclient.New(caclient.Config{
		Address: o.ca, ServerName: o.serverName, RootsFile: o.root, TokenFile: o.token, ClusterID: o.clusterID, Lifetime: o.lifetime,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("certificate authority %s: %w", o.ca, err)
	}
	return identity.NewStore(ca, report), ca, nil
}

// logFailures tells the log of certificates that are not got or not renewed,
// and how long those there are serve, but not of every one in an outage.
func logFailures(log *zap.Logger) func(identity.Status) {
	const burst = 20
	limit := rate.NewLimiter(rate.Every(time.Second), burst)
	return func(s identity.Status) {
		if !limit.Allow() {
			return
		}
		fields := []zap.Field{zap.Stringer("identity", s.Identity), zap.Uint64("failures", s.Failures), zap.Error(s.Err)}
		if left := time.Until(s.NotAfter()).Truncate(time.Second); left > 0 {
			log.Warn("no newer certificate; the one there is serves until it ends", append(fields, zap.Duration("left", left))...)
			return
		}
		log.Error("no certificate: its pods cannot talk", fields...)
	}
}

// certificates is the state of each identity: of pods that do not share their
// certificate, that which ends first.
func (p *process) certificates() []telemetry.Certificate {
	var all []telemetry.Certificate
	for _, s := range p.store.All() { // sorted by identity
		c := telemetry.Certificate{Identity: s.Identity, NotAfter: s.NotAfter(), Renewal: s.Renewal(), Failures: s.Failures, Roots: s.Roots}
		last := len(all) - 1
		if last < 0 || all[last].Identity != c.Identity {
			all = append(all, c)
			continue
		}
		all[last].Failures += c.Failures
		if !c.NotAfter.IsZero() && (all[last].NotAfter.IsZero() || c.NotAfter.Before(all[last].NotAfter)) {
			all[last].NotAfter, all[last].Renewal, all[last].Roots = c.NotAfter, c.Renewal, c.Roots
		}
	}
	return all
}

// certificateViews is what the store holds, for people.
func (p *process) certificateViews() []admin.Certificate { return p.certificatesHeld(false) }

// certificateChains is the same with all that it takes to verify them.
func (p *process) certificateChains() []admin.Certificate { return p.certificatesHeld(true) }

func (p *process) certificatesHeld(chains bool) []admin.Certificate {
	views := []admin.Certificate{}
	for _, s := range p.store.All() {
		v := admin.Certificate{Identity: s.Identity.String(), Selectors: strings.ReplaceAll(s.Selectors, "\n", " "), Failures: s.Failures}
		if s.Leaf != nil {
			v.Issuer, v.Serial = s.Leaf.Issuer.String(), s.Leaf.SerialNumber.Text(16)
			v.NotBefore, v.NotAfter, v.Renewal = s.Leaf.NotBefore, s.Leaf.NotAfter, s.Renewal()
		}
		if chains {
			v.Chain = s.Chain
			for _, root := range s.Authorities {
				v.Roots = append(v.Roots, root.Raw)
			}
		}
		if s.Err != nil {
			v.Error = s.Err.Error()
		}
		views = append(views, v)
	}
	return views
}

// identityFlags say where certificates come from.
func (o *options) identityFlags(f *pflag.FlagSet) {
	f.StringVar(&o.ca, "ca", "", "`HOST:PORT` of the certificate authority")
	f.StringVar(&o.spire, "spire", "", "admin `socket` of SPIRE's agent, which gives the certificates in place of --ca")
	f.StringVar(&o.workloadAPI, "workload-api", "", "`socket` of a SPIFFE Workload API, whose certificates for this process are used in place of --ca")
	f.StringSliceVar(&o.crls, "crl", nil, "`file` of revoked certificates, PEM or DER, read again when it changes; may be given several times")
	f.DurationVar(&o.lifetime, "certificate-ttl", 24*time.Hour, "life to ask for in certificates; they are renewed at half of it")
	f.DurationVar(&o.grace, "certificate-grace", 0, "how long live connections may go on once the certificate of either side has ended without a newer one; 0: for as long as they like")
}
