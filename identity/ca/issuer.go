package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/xds/model"
)

// backdate is how far certificates reach back, for nodes whose clocks are slow.
const backdate = 5 * time.Minute

// issuer is an authority at one moment. It never changes once made.
type issuer struct {
	state         *State
	signer        *x509.Certificate
	key           crypto.Signer
	intermediates []*x509.Certificate // from the signer up, without the root; empty if the signer is a root
	roots         []*x509.Certificate
}

// newIssuer reads a state and makes sure that peers will accept what it signs.
func newIssuer(state *State, trustDomain string, now time.Time) (*issuer, error) {
	i := &issuer{state: state}
	var err error
	if i.key, err = parseKey(state.Key); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	chain, err := parseCertificates(state.Chain)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	if i.roots, err = parseCertificates(state.Roots); err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate: the first one must be that of the key")
	}
	i.signer = chain[0]
	if public, ok := i.signer.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(i.key.Public()) {
		return nil, fmt.Errorf("the first certificate, %q, is for another key", i.signer.Subject)
	}
	for _, c := range append(chain, i.roots...) {
		if err := checkAuthority(c); err != nil {
			return nil, err
		}
	}
	i.takeRoots(chain)
	if err := i.link(chain[1:], now); err != nil {
		return nil, err
	}
	if err := i.probe(trustDomain, now); err != nil {
		return nil, fmt.Errorf("peers would refuse what %q signs: %w", i.signer.Subject, err)
	}
	return i, nil
}

// checkAuthority refuses what may not sign certificates, or is signed so badly
// that anybody may have made it. Of a root nobody looks at the signature.
func checkAuthority(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return fmt.Errorf("%q may not sign certificates: it is no CA's (basic constraints)", c.Subject)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%q may not sign certificates: its key usage lacks certificate signing", c.Subject)
	}
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < 2048 {
		return fmt.Errorf("%q has an RSA key of %d bits: want 2048 or more", c.Subject, key.N.BitLen())
	}
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		if !bytes.Equal(c.RawSubject, c.RawIssuer) {
			return fmt.Errorf("%q has a weak signature, %s, which peers refuse: have it signed anew with SHA-256", c.Subject, c.SignatureAlgorithm)
		}
	}
	return nil
}

// takeRoots adds to the roots given, where there are none, those of the chain
// that signed themselves; and the signer, if it is such a one.
func (i *issuer) takeRoots(chain []*x509.Certificate) {
	given := len(i.roots) > 0
	for _, c := range chain {
		if isSelfSigned(c) && (!given || c == i.signer) && !contains(i.roots, c) {
			i.roots = append(i.roots, c)
		}
	}
}

func isSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// link finds the way from the signer up to a root.
func (i *issuer) link(above []*x509.Certificate, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range i.roots {
		roots.AddCert(c)
	}
	for _, c := range above {
		between.AddCert(c)
	}
	chains, err := i.signer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return i.explain(above, now, err)
	}
	best := chains[0]
	for _, chain := range chains[1:] {
		if len(chain) < len(best) {
			best = chain
		}
	}
	i.intermediates = best[:len(best)-1]
	return nil
}

// explain says what has to be done about a signer that leads to no root.
func (i *issuer) explain(above []*x509.Certificate, now time.Time, err error) error {
	top := i.signer
	for seen := 0; seen <= len(above); seen++ {
		if now.Before(top.NotBefore) || !now.Before(top.NotAfter) {
			return fmt.Errorf("%q is valid from %s to %s only: put a newer one in its place",
				top.Subject, top.NotBefore.UTC().Format(time.RFC3339), top.NotAfter.UTC().Format(time.RFC3339))
		}
		next := issuerOf(top, above)
		if next == nil || next.Equal(top) {
			break
		}
		top = next
	}
	if issuerOf(top, i.roots) == nil {
		return fmt.Errorf("%q leads to no root: the certificate of %q, which signed it, is missing; append it to the chain if it is an intermediate, or to the roots", top.Subject, top.Issuer)
	}
	return fmt.Errorf("%q leads to no root: %w", i.signer.Subject, err)
}

func issuerOf(c *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, candidate := range among {
		if bytes.Equal(candidate.RawSubject, c.RawIssuer) {
			return candidate
		}
	}
	return nil
}

// probe signs a certificate and judges it as a peer would: that finds limits
// of path length, of usage and of names anywhere above, and a chain that is
// too long. It is thrown away.
func (i *issuer) probe(trustDomain string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	leaf, err := i.sign(workload(model.Identity{TrustDomain: trustDomain, Namespace: "tacit-system", ServiceAccount: "tacitd"}), key.Public(), MinTTL, now)
	if err != nil {
		return err
	}
	m, err := identity.NewMaterial(i.chain(leaf), key, i.roots)
	if err != nil {
		return err
	}
	err = m.Check(now)
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.TooManyIntermediates {
		return fmt.Errorf("one above it allows fewer CAs below itself than there are (path length): %w", err)
	}
	return err
}

// workload is the template of a workload's certificate.
func workload(id model.Identity) *x509.Certificate {
	return &x509.Certificate{
		URIs:        []*url.URL{{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// sign completes a leaf's template and signs it. The result lives from a
// little before now until ttl from now, or until the signer's end.
func (i *issuer) sign(leaf *x509.Certificate, key crypto.PublicKey, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	if !now.Before(i.signer.NotAfter) {
		return nil, fmt.Errorf("the CA's own certificate ended at %s: put a new one in its place", i.signer.NotAfter.Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	leaf.SerialNumber = serial
	leaf.NotBefore, leaf.NotAfter = now.Add(-backdate), now.Add(ttl)
	if leaf.NotAfter.After(i.signer.NotAfter) {
		leaf.NotAfter = i.signer.NotAfter
	}
	leaf.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, leaf, i.signer, key, i.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// chain is what a holder of the leaf presents, without the root.
func (i *issuer) chain(leaf *x509.Certificate) []*x509.Certificate {
	return append([]*x509.Certificate{leaf}, i.intermediates...)
}

// same reports whether both do the same in the same phase of a rotation.
func (i *issuer) same(other *issuer) bool {
	equal := (*x509.Certificate).Equal
	return i.phase() == other.phase() && i.signer.Equal(other.signer) &&
		slices.EqualFunc(i.roots, other.roots, equal) && slices.EqualFunc(i.intermediates, other.intermediates, equal)
}

func (i *issuer) phase() Phase {
	if i.state.Rotation == nil {
		return ""
	}
	return i.state.Rotation.Phase
}

// newSerial is 127 random bits: RFC 5280 wants serials positive.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("choose serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

// strong reports whether a key may be certified: ECDSA on P-256 or a larger curve.
func strong(key crypto.PublicKey) bool {
	k, ok := key.(*ecdsa.PublicKey)
	return ok && (k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521())
}
