// Package ca is the certificate authority inside tacitd: it keeps a signing
// key in a directory, and signs the requests of nodes' proxies for the
// identities of the pods that they run.
//
// It speaks the certificate service of Istio. What does not belong here: which
// node is calling (identity/nodeauth) and which identities it may have, both
// of which the caller of this package says.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// backdate is how far certificates reach back, for nodes whose clocks are slow.
const backdate = 5 * time.Minute

// Authority signs certificates. It never changes once opened.
type Authority struct {
	signer        *x509.Certificate
	key           crypto.Signer
	intermediates []*x509.Certificate // from the signer up, without roots; empty if the signer is a root
	roots         []*x509.Certificate
	now           func() time.Time
}

// Roots are the certificates that peers are judged by, as PEM.
func (a *Authority) Roots() []byte { return encode(a.roots...) }

// NotAfter is when the signing certificate ends; nothing it signs lives longer.
func (a *Authority) NotAfter() time.Time { return a.signer.NotAfter }

// sign completes a leaf's template and signs it. The result lives from a
// little before now until ttl from now, or until the signer's end.
func (a *Authority) sign(leaf *x509.Certificate, key crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	now := a.now()
	if !now.Before(a.signer.NotAfter) {
		return nil, fmt.Errorf("the CA's own certificate ended at %s: put a new one into its directory", a.signer.NotAfter.Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	leaf.SerialNumber = serial
	leaf.NotBefore, leaf.NotAfter = now.Add(-backdate), now.Add(ttl)
	if leaf.NotAfter.After(a.signer.NotAfter) {
		leaf.NotAfter = a.signer.NotAfter
	}
	leaf.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.signer, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
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

// chain is what a holder of the leaf presents, without the root.
func (a *Authority) chain(leaf *x509.Certificate) []*x509.Certificate {
	return append([]*x509.Certificate{leaf}, a.intermediates...)
}

// newAuthority sorts the certificates: the first is the signer, those that
// signed themselves are roots.
func newAuthority(key crypto.Signer, certificates []*x509.Certificate) (*Authority, error) {
	if len(certificates) == 0 {
		return nil, errors.New("no certificate")
	}
	a := &Authority{signer: certificates[0], key: key, now: time.Now}
	if public, ok := a.signer.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the first certificate is for another key")
	}
	for _, c := range certificates {
		switch {
		case !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return nil, fmt.Errorf("%q may not sign certificates", c.Subject)
		case c.CheckSignatureFrom(c) == nil:
			a.roots = append(a.roots, c)
		default:
			a.intermediates = append(a.intermediates, c)
		}
	}
	if err := a.verifySigner(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Authority) verifySigner() error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range a.roots {
		roots.AddCert(c)
	}
	for _, c := range a.intermediates {
		between.AddCert(c)
	}
	_, err := a.signer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: a.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

func encode(certificates ...*x509.Certificate) (out []byte) {
	for _, c := range certificates {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
