package identity

import "crypto/x509"

// Revocations say which certificates their authorities have taken back.
type Revocations interface {
	// Revoked is an error if one of the chain's certificates is revoked by
	// its issuer, which is another one of the chain or one of the roots.
	Revoked(chain, roots []*x509.Certificate) error
	// Changed returns a channel that is closed when next the answers change.
	Changed() <-chan struct{}
}

// WithRevocations has ClientConfig and ServerConfig refuse peers whose
// certificates are revoked; nil revokes none.
func WithRevocations(r Revocations) Option {
	return func(o *options) { o.revocations = r }
}

// Revoked is an error if a peer's certificates, as it has shown them at a
// handshake with the workload of m, are revoked.
func (m *Material) Revoked(peer []*x509.Certificate, r Revocations) error {
	if r == nil || len(peer) == 0 {
		return nil
	}
	roots := m.Authorities
	if len(peer[0].URIs) > 0 {
		if b := m.Federated[peer[0].URIs[0].Host]; b != nil {
			roots = b.Authorities
		}
	}
	if err := r.Revoked(peer, roots); err != nil {
		return &PeerError{Reason: reasonRevoked, Err: err}
	}
	return nil
}
