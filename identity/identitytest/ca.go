// Package identitytest makes certificates, good and bad, and sockets that
// misbehave, for tests.
//
// What does not belong here: anything that a program uses; the certificate
// authority of the control plane is identity/ca.
package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/xds/model"
)

// CA is a self-signed authority.
type CA struct {
	Root *x509.Certificate
	Key  crypto.Signer
}

// NewCA makes an authority that is valid for years around now.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key := NewKey(t)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test root"},
		NotBefore:             time.Now().AddDate(-5, 0, 0),
		NotAfter:              time.Now().AddDate(5, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &CA{Root: sign(t, template, template, key.Public(), key), Key: key}
}

// NewKey makes a P-256 key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Template is a good leaf for the URIs, valid from five minutes ago for an
// hour; a test spoils what it wants to.
func Template(t testing.TB, uris ...string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-5 * time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return template
}

// Sign issues the template for a public key.
func (ca *CA) Sign(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	return sign(t, template, ca.Root, public, ca.Key)
}

// Issue gives a workload its material, valid for an hour.
func (ca *CA) Issue(t testing.TB, id model.Identity) *identity.Material {
	t.Helper()
	return ca.IssueTemplate(t, Template(t, id.String()))
}

// IssueTemplate is Issue with a template of the test's own, which must carry
// one identity.
func (ca *CA) IssueTemplate(t testing.TB, template *x509.Certificate) *identity.Material {
	t.Helper()
	key := NewKey(t)
	leaf := ca.Sign(t, template, key.Public())
	m, err := identity.NewMaterial([]*x509.Certificate{leaf}, key, []*x509.Certificate{ca.Root})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Below is an authority so many intermediates below this one, and these, the
// last first.
func (ca *CA) Below(t testing.TB, n int, key func() crypto.Signer) (signer *CA, chain []*x509.Certificate) {
	t.Helper()
	signer = ca
	for i := range n {
		k := key()
		signer = &CA{Root: signer.Sign(t, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: "intermediate", SerialNumber: string(rune('a' + i))},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}, k.Public()), Key: k}
		chain = append([]*x509.Certificate{signer.Root}, chain...)
	}
	return signer, chain
}
