package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
)

// Generate makes what an authority is opened from: a P-256 key in PKCS #8, and
// a root that signs itself and names the trust domain, both as PEM.
func Generate(trustDomain string) (key, root []byte, err error) {
	if key, err = newKey(); err != nil {
		return nil, nil, err
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, nil, err
	}
	root, err = newRoot(signer, trustDomain)
	return key, root, err
}

// Parse reads an authority from PEM, in the layout that Kubernetes gives
// certificates: the key, its certificate with what follows it, and roots,
// which may be there already. The error does not show the key.
func Parse(key, chain, roots []byte) (*Authority, error) {
	signer, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	certificates, err := parseCertificates(chain)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	more, err := parseCertificates(roots)
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	for _, c := range more {
		if !slices.ContainsFunc(certificates, func(have *x509.Certificate) bool { return bytes.Equal(have.Raw, c.Raw) }) {
			certificates = append(certificates, c)
		}
	}
	return newAuthority(signer, certificates)
}
