package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// NewMaterial joins a chain (leaf first, without the root), the leaf's
// private key and the roots. It fails if the key is not the leaf's, if the
// leaf does not carry exactly one identity, or if there are no roots. Whether
// the chain leads to the roots is for the source to check, with a clock.
func NewMaterial(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) (*Material, error) {
	if len(chain) == 0 || key == nil || len(roots) == 0 {
		return nil, errors.New("identity material: chain, key and roots are all needed")
	}
	if _, err := identityOf(chain[0]); err != nil {
		return nil, fmt.Errorf("identity material: %w", err)
	}
	public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("identity material: the certificate is for another key")
	}
	m := &Material{
		Certificate: &tls.Certificate{PrivateKey: key, Leaf: chain[0]},
		Leaf:        chain[0],
		Roots:       x509.NewCertPool(),
		Authorities: roots,
	}
	for _, c := range chain {
		m.Certificate.Certificate = append(m.Certificate.Certificate, c.Raw)
	}
	for _, r := range roots {
		m.Roots.AddCert(r)
	}
	return m, nil
}

// Identity is the one that the leaf names; zero if it names none.
func (m *Material) Identity() model.Identity {
	id, err := identityOf(m.Leaf)
	if err != nil {
		return model.Identity{}
	}
	return id
}

// ValidAt reports whether the leaf is within its life at now.
func (m *Material) ValidAt(now time.Time) bool {
	return !now.Before(m.Leaf.NotBefore) && now.Before(m.Leaf.NotAfter)
}
