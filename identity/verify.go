package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/tacit-mesh/tacit/xds/model"
)

// The reasons for which a handshake fails, as [FailureReason] gives them.
// They are labels of metrics and fields of logs, so they never change.
const (
	reasonNoCertificate    = "no_certificate"
	reasonUnknownAuthority = "unknown_authority"
	reasonExpired          = "expired" // or not valid yet
	reasonBadUsage         = "bad_usage"
	reasonBadCertificate   = "bad_certificate" // any other fault in the chain
	reasonRevoked          = "revoked"
	reasonNoSPIFFEID       = "no_spiffe_id"
	reasonSeveralURISANs   = "several_uri_sans"
	reasonWrongTrustDomain = "wrong_trust_domain"
	reasonWrongIdentity    = "wrong_identity"
	reasonNoALPN           = "no_alpn"
	reasonOwnCertificate   = "own_certificate" // this side has none that is valid
	reasonRefusedByPeer    = "refused_by_peer" // the peer sent an alert
	reasonNotTLS           = "not_tls"
	reasonTimeout          = "timeout"
	reasonClosed           = "closed"
	reasonProtocol         = "protocol" // anything else that TLS found wrong
)

// PeerError says why a handshake was given up by this side's own checks.
type PeerError struct {
	// Reason is a stable label, one of those [FailureReason] documents.
	Reason string
	Err    error
}

func (e *PeerError) Error() string { return "TLS peer: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *PeerError) Unwrap() error { return e.Err }

func refuse(reason, format string, args ...any) error {
	return &PeerError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// FailureReason is a stable label for why a handshake failed: no_certificate,
// unknown_authority, expired, bad_usage, bad_certificate, revoked, no_spiffe_id,
// several_uri_sans, wrong_trust_domain, wrong_identity and no_alpn for what
// the peer showed; own_certificate for a lack on this side; refused_by_peer,
// not_tls, timeout, closed or protocol for the rest. It is "" for nil.
func FailureReason(err error) string {
	var peer *PeerError
	var header tls.RecordHeaderError
	var op *net.OpError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &peer):
		return peer.Reason
	case errors.As(err, &header):
		return reasonNotTLS
	case isTimeout(err):
		return reasonTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return reasonClosed
	case errors.As(err, &op) && op.Op == "remote error":
		return reasonRefusedByPeer
	// crypto/tls has no type for it; a changed text would only cost the label.
	case strings.Contains(err.Error(), "client didn't provide a certificate"):
		return reasonNoCertificate
	}
	return reasonProtocol
}

// HasEnded reports whether a handshake failed since a certificate, this side's
// or the peer's, was outside of its life. Its successor may come in a moment.
func HasEnded(err error) bool {
	var peer *PeerError
	return errors.As(err, &peer) && (peer.Reason == reasonExpired || peer.Reason == reasonOwnCertificate)
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// PeerIdentity is who the other side of a finished handshake proved to be,
// and its certificate, whose NotAfter ends what the connection may be used for.
func PeerIdentity(state tls.ConnectionState) (model.Identity, *x509.Certificate, error) {
	if !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return model.Identity{}, nil, refuse(reasonNoCertificate, "no certificate was verified on this connection")
	}
	leaf := state.PeerCertificates[0]
	id, err := identityOf(leaf)
	return id, leaf, err
}

// verifyPeer checks what both directions have in common and returns the
// peer's SPIFFE id.
func verifyPeer(state tls.ConnectionState, m *Material, usage x509.ExtKeyUsage, o options) (string, error) {
	if state.NegotiatedProtocol != alpn {
		return "", refuse(reasonNoALPN, "the peer does not speak %s", alpn)
	}
	if len(state.PeerCertificates) == 0 {
		return "", refuse(reasonNoCertificate, "the peer showed no certificate")
	}
	leaf := state.PeerCertificates[0]
	if n := len(state.PeerCertificates); n > maxChain {
		return "", refuse(reasonBadCertificate, "certificate of %s: a chain of %d certificates, at most %d are possible", describe(leaf), n, maxChain)
	}
	// What the leaf claims, which only the chain proves, chooses the roots.
	roots := m.Roots
	id, claim := spiffeIDOf(leaf)
	if claim == nil {
		var err error
		if roots, err = m.rootsOf(leaf.URIs[0].Host, o.ours); err != nil {
			return "", fmt.Errorf("certificate of %s: %w", describe(leaf), err)
		}
	}
	if _, err := verifyChain(state.PeerCertificates, roots, usage, o.now()); err != nil {
		return "", err
	}
	if err := m.Revoked(state.PeerCertificates, o.revocations); err != nil {
		return "", err
	}
	return id, claim
}

// verifyChain follows RFC 5280 to the roots, then the X.509-SVID standard for
// leaves (sections 4 and 5): a signing certificate is no identity. It returns all
// the ways to a root that there are.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) (paths [][]*x509.Certificate, err error) {
	leaf := chain[0]
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	paths, err = leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{usage},
		CurrentTime:   now,
	})
	if err != nil {
		return nil, &PeerError{Reason: chainReason(err), Err: fmt.Errorf("certificate of %s: %w", describe(leaf), err)}
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return nil, refuse(reasonBadUsage, "certificate of %s: it may sign certificates, so it is no workload's", describe(leaf))
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, refuse(reasonBadUsage, "certificate of %s: its key may not sign a handshake", describe(leaf))
	}
	return paths, nil
}

func chainReason(err error) string {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return reasonUnknownAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return reasonExpired
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return reasonBadUsage
	}
	return reasonBadCertificate
}

// spiffeIDOf is the one URI SAN of a certificate, if it is a SPIFFE id.
func spiffeIDOf(leaf *x509.Certificate) (string, error) {
	switch len(leaf.URIs) {
	case 0:
		return "", refuse(reasonNoSPIFFEID, "certificate of %s: no URI SAN", describe(leaf))
	case 1:
	default:
		return "", refuse(reasonSeveralURISANs, "certificate of %s: %d URI SANs where there must be one", describe(leaf), len(leaf.URIs))
	}
	if _, err := spiffeid.FromURI(leaf.URIs[0]); err != nil {
		return "", refuse(reasonNoSPIFFEID, "certificate of %s: %w", describe(leaf), err)
	}
	return leaf.URIs[0].String(), nil
}

func identityOf(leaf *x509.Certificate) (model.Identity, error) {
	uri, err := spiffeIDOf(leaf)
	if err != nil {
		return model.Identity{}, err
	}
	id, err := model.ParseIdentity(uri)
	if err != nil {
		return model.Identity{}, &PeerError{Reason: reasonNoSPIFFEID, Err: err}
	}
	return id, nil
}

// describe names a certificate that may be a hostile one: its first URI, cut
// and quoted, or its serial number.
func describe(leaf *x509.Certificate) string {
	const limit = 200
	if len(leaf.URIs) == 0 {
		return fmt.Sprintf("serial %.40s", leaf.SerialNumber)
	}
	return fmt.Sprintf("%.*q", limit, leaf.URIs[0].String())
}
