// Package identity proves who a workload is: certificates for the pods of
// this node, and the verification of peers' certificates.
//
// Where certificates come from is the business of the packages below it
// (caclient, spire, ...), each a [Source]. What does not belong here: what an
// identity may do (proxy/policy).
package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Material is what a workload proves itself with, and the roots by which it
// judges others, at one moment. It never changes once made.
type Material struct {
	// Certificate holds leaf and intermediates, never the root. Its private
	// key is used for signing alone.
	Certificate *tls.Certificate
	Leaf        *x509.Certificate
	Roots       *x509.CertPool
	// Authorities are the certificates in Roots, which a pool does not give
	// back; [Store.Export] needs them.
	Authorities []*x509.Certificate
	// Federated are the bundles of other trust domains, by name. A peer from
	// one of them is judged by that one's alone.
	Federated map[string]*Bundle

	// encodedKey is the private key in PKCS #8, encoded when it is first asked
	// for: that takes longer than all else in an export.
	encodedKey func() ([]byte, error)
}

// Bundle is the roots of a trust domain.
type Bundle struct {
	Roots       *x509.CertPool
	Authorities []*x509.Certificate // those in Roots
}

// NotAfter is when the leaf ends.
func (m *Material) NotAfter() time.Time { return m.Leaf.NotAfter }

// Pod is a pod of this node as its agent has attested it.
type Pod struct {
	Identity model.Identity
	UID      string // metadata.uid
	Name     string
	Node     string
	Labels   map[string]string
	model.Composition
}

// Subject is whom a certificate is for. It is comparable.
type Subject struct {
	Identity model.Identity
	// Selectors are the facts by which the source decides about a single
	// pod, in a form of its own. They are empty where it decides by the
	// identity alone, so that the pods which have it share a certificate.
	Selectors string
}

// Source issues certificates and keeps them fresh.
type Source interface {
	// Subscribe calls update with the first material of the subject and
	// again with each renewed one, until the context ends (its error is
	// returned). A failure to get or renew is reported by failed and
	// retried with backoff; it never ends the subscription. Calls come one
	// at a time.
	Subscribe(ctx context.Context, s Subject, update func(*Material), failed func(error)) error
}
