package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"
)

// serverTTL is the life of a server's own certificate, renewed at half of it.
const serverTTL = 24 * time.Hour

// ServerCertificate returns a function for tls.Config.GetCertificate: a
// certificate of this authority for the DNS names, renewed by the first
// handshake after half of its life, or after the authority has changed. An
// error of the first one comes back at once; a later one leaves the old
// certificate in use while it is valid.
func (a *Authority) ServerCertificate(names ...string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	c := &serverCertificate{authority: a, names: names}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return c.get, nil
}

type serverCertificate struct {
	authority *Authority
	names     []string

	mu      sync.Mutex
	current *tls.Certificate
	from    *issuer
}

func (c *serverCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, issuer := c.authority.now(), c.authority.issuer()
	if c.current != nil && c.from == issuer && now.Before(halfLife(c.current.Leaf)) {
		return c.current, nil
	}
	renewed, err := c.issue(issuer, now)
	switch {
	case err == nil:
		c.current, c.from = renewed, issuer
	case c.current == nil || !now.Before(c.current.Leaf.NotAfter):
		return nil, fmt.Errorf("certificate for %v: %w", c.names, err)
	}
	return c.current, nil
}

func halfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}

func (c *serverCertificate) issue(i *issuer, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	leaf, err := i.sign(&x509.Certificate{
		DNSNames:    c.names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public(), serverTTL, now)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, certificate := range i.chain(leaf) {
		out.Certificate = append(out.Certificate, certificate.Raw)
	}
	return out, nil
}
