package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// maxChain bounds what a chain, a peer's or one's own, may cost to verify: a
// leaf and as many intermediates as there are in the deepest of hierarchies.
const maxChain = 10

// NewMaterial joins a chain (leaf first, without the root), the leaf's
// private key and the roots. It fails if the key is not the leaf's, if the
// leaf does not carry exactly one identity, or if there are no roots. Whether
// the chain leads to the roots is for the source to check, with a clock.
func NewMaterial(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) (*Material, error) {
	if len(chain) == 0 || key == nil || len(roots) == 0 {
		return nil, errors.New("identity material: chain, key and roots are all needed")
	}
	if len(chain) > maxChain {
		return nil, fmt.Errorf("identity material: a chain of %d certificates, of which peers accept %d", len(chain), maxChain)
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
		Authorities: roots,
		Roots:       newBundle(roots).Roots,
		encodedKey:  sync.OnceValues(func() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }),
	}
	for _, c := range chain {
		m.Certificate.Certificate = append(m.Certificate.Certificate, c.Raw)
	}
	return m, nil
}

func newBundle(roots []*x509.Certificate) *Bundle {
	b := &Bundle{Roots: x509.NewCertPool(), Authorities: roots}
	for _, r := range roots {
		b.Roots.AddCert(r)
	}
	return b
}

// Federate adds the roots of other trust domains, before m is used. The own
// trust domain's, and a bundle without roots, change nothing.
func (m *Material) Federate(bundles map[string][]*x509.Certificate) {
	m.Federated = map[string]*Bundle{}
	for domain, roots := range bundles {
		if domain != m.Identity().TrustDomain && len(roots) > 0 {
			m.Federated[domain] = newBundle(roots)
		}
	}
}

// rootsOf are those by which a peer is judged that claims to be of a trust
// domain. For another name of the own one they are the own ones, even if there
// is a bundle of that name: who made the bundle would issue the own identities.
// The own ones also judge domains that have no bundle: whether such a peer is
// accepted is decided elsewhere.
func (m *Material) rootsOf(domain string, ours func(domain string) (bool, error)) (*x509.CertPool, error) {
	b := m.Federated[domain]
	if b == nil {
		return m.Roots, nil
	}
	if alias, err := ours(domain); alias || err != nil {
		return m.Roots, err
	}
	return b.Roots, nil
}

// RenewalDue is when a source that renews by itself is late. SPIRE spreads
// renewals over 45 to 55 % of the life, looks for what is due every few seconds,
// and then asks its server.
func (m *Material) RenewalDue() time.Time {
	const looking = time.Minute
	life := m.NotAfter().Sub(m.Leaf.NotBefore)
	return m.Leaf.NotBefore.Add(min(life*11/20+looking, life*3/4))
}

// Identity is the one that the leaf names; zero if it names none.
func (m *Material) Identity() model.Identity {
	id, err := identityOf(m.Leaf)
	if err != nil {
		return model.Identity{}
	}
	return id
}

// Check sees to it that peers who have the same roots will accept the
// certificate, as a client's and as a server's.
func (m *Material) Check(now time.Time) error {
	if !m.ValidAt(now) {
		return fmt.Errorf("it is valid from %s to %s, and here it is %s (check both clocks)",
			m.Leaf.NotBefore.UTC().Format(time.RFC3339), m.Leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	chain, err := parseAll(m.Certificate.Certificate)
	if err != nil {
		return err
	}
	if err := verifyBoth(chain, m.Roots, now); err != nil {
		return fmt.Errorf("it does not lead to the roots that came with it, or peers refuse it: %w", err)
	}
	return nil
}

// CheckChain says why peers that have the roots would refuse a chain, leaf
// first, as a proof of the identity; nil if they would not.
func CheckChain(chain, roots []*x509.Certificate, id model.Identity, now time.Time) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("a chain of %d certificates, of which there can be up to %d", len(chain), maxChain)
	}
	names, err := identityOf(chain[0])
	switch {
	case err != nil:
		return err
	case names != id:
		return fmt.Errorf("it names %s", names)
	}
	return verifyBoth(chain, newBundle(roots).Roots, now)
}

// verifyBoth verifies as a client of the workload would, and as a server. As a
// rule a chain is good for both or for neither: then its signatures, which take
// longer than all else, are verified once.
func verifyBoth(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	found, err := verifyChain(chain, roots, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return err
	}
	for _, path := range found {
		if !slices.ContainsFunc(path, notForClients) {
			return nil
		}
	}
	_, err = verifyChain(chain, roots, x509.ExtKeyUsageClientAuth, now)
	return err
}

// notForClients reports whether a certificate, of an authority or not, names
// usages without that of clients.
func notForClients(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

// ValidAt reports whether the leaf is within its life at now.
func (m *Material) ValidAt(now time.Time) bool {
	return !now.Before(m.Leaf.NotBefore) && now.Before(m.Leaf.NotAfter)
}
