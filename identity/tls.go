package identity

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"
)

const alpn = "h2"

// Option changes what NewStore, ClientConfig and ServerConfig do.
type Option func(*options)

type options struct {
	now         func() time.Time
	selectors   func(Pod) string
	failed      func(Status)
	pushed      bool
	revocations Revocations
	ours        func(trustDomain string) (bool, error)
}

// WithClock replaces the wall clock by which certificates are judged.
func WithClock(now func() time.Time) Option {
	return func(o *options) { o.now = now }
}

// WithSelectors says by which facts of a pod a Store's source decides; see
// [Subject]. Without it, by the identity alone.
func WithSelectors(of func(Pod) string) Option {
	return func(o *options) { o.selectors = of }
}

// WithFailures has a Store report each failure of its source, one call at a
// time.
func WithFailures(report func(Status)) Option {
	return func(o *options) { o.failed = report }
}

// WithPushedRenewals says that a Store's source renews when it wants, so that a
// renewal is overdue only by [Material.RenewalDue].
func WithPushedRenewals() Option { return func(o *options) { o.pushed = true } }

// WithTrustDomains says which further trust domains are other names of the
// workload's own. Peers of these are judged by the own roots alone, whatever
// bundles there are, and ServerConfig accepts them. An error of ours ends the
// handshake.
func WithTrustDomains(ours func(name string) (bool, error)) Option {
	return func(o *options) { o.ours = ours }
}

// wallClock is without the monotonic reading, which stands still while a machine
// sleeps, as certificates do not.
func wallClock() time.Time { return time.Now().Round(0) }

func optionsOf(opts []Option) options {
	o := options{now: wallClock, selectors: func(Pod) string { return "" }, failed: func(Status) {}, ours: func(string) (bool, error) { return false, nil }}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// ClientConfig is for one connection, or several alike, from the workload of m
// to a peer that must prove to be one of accept: SPIFFE ids, compared whole.
// None accepted means that every peer is refused.
func ClientConfig(m *Material, accept []string, opts ...Option) *tls.Config {
	o := optionsOf(opts)
	config := common(o)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return usable(m, o.now())
	}
	// Nothing is skipped: crypto/tls can only verify DNS names and addresses,
	// so VerifyConnection does all of it, on every handshake.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		id, err := verifyPeer(state, m, x509.ExtKeyUsageServerAuth, o)
		if err != nil {
			return err
		}
		if !slices.Contains(accept, id) {
			return refuse(reasonWrongIdentity, "the server proved to be %q, expected one of %q", id, accept)
		}
		return nil
	}
	return config
}

// ServerConfig serves any number of connections to one workload. Each
// handshake asks get for the current material, which must not wait for long.
// A client must prove an identity of the workload's own trust domain, or of
// one that it federates with.
func ServerConfig(get func() (*Material, error), opts ...Option) *tls.Config {
	o := optionsOf(opts)
	config := common(o)
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		m, err := get()
		if err != nil {
			return nil, &PeerError{Reason: reasonOwnCertificate, Err: err}
		}
		return usable(m, o.now())
	}
	config.ClientAuth = tls.RequireAnyClientCert // and verified below
	config.VerifyConnection = func(state tls.ConnectionState) error {
		m, err := get()
		if err != nil {
			return &PeerError{Reason: reasonOwnCertificate, Err: err}
		}
		if _, err := verifyPeer(state, m, x509.ExtKeyUsageClientAuth, o); err != nil {
			return err
		}
		id, err := identityOf(state.PeerCertificates[0])
		if err != nil {
			return err
		}
		own := m.Identity()
		if id.TrustDomain == own.TrustDomain || m.Federated[id.TrustDomain] != nil {
			return nil
		}
		if ours, err := o.ours(id.TrustDomain); ours || err != nil {
			return err
		}
		return refuse(reasonWrongTrustDomain, "the client proved to be %q, expected trust domain %q", id, own.TrustDomain)
	}
	return config
}

func common(o options) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		MaxVersion: tls.VersionTLS13,
		// Hybrid first: what is recorded today stays closed to a quantum computer.
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		NextProtos:       []string{alpn},
		Time:             o.now,
		// A resumed session would outlive the certificate it began with.
		SessionTicketsDisabled: true,
		// Small first records speed up pages on slow links; between two
		// proxies they only cost.
		DynamicRecordSizingDisabled: true,
	}
}

// usable keeps an expired certificate from ever being presented.
func usable(m *Material, now time.Time) (*tls.Certificate, error) {
	if !m.ValidAt(now) {
		return nil, refuse(reasonOwnCertificate, "the own certificate of %s is valid from %s to %s only",
			m.Identity(), m.Leaf.NotBefore.UTC().Format(time.RFC3339), m.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return m.Certificate, nil
}
