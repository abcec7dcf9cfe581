package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/tacit-mesh/tacit/test/world"
)

const tlsOffset = 1000 // of the ports between the two HAProxies

// One HAProxy beside the client takes its connections on loopback, and one
// beside the server gives them to it there; both ask for a certificate.
// With the cipher that Go chooses; OpenSSL's own choice is a slower one.
const haproxyHead = `
global
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
`

const haproxyClient = `
listen port%[1]d
  bind 127.0.0.1:%[1]d
  server peer %[2]s ssl crt %[3]s ca-file %[4]s verify required ssl-min-ver TLSv1.3
`

const haproxyServer = `
listen port%[1]d
  bind %[2]s ssl crt %[3]s ca-file %[4]s verify required ssl-min-ver TLSv1.3
  server app 127.0.0.1:%[1]d
`

// startHAProxies starts the pair and returns its processes.
func startHAProxies(ctx context.Context, w *world.World, started *processes) ([]int, error) {
	dir := filepath.Join(w.Dir(), "haproxy")
	if err := errors.Join(os.MkdirAll(dir, 0o755), writeCertificates(dir)); err != nil {
		return nil, err
	}
	server := w.Pod("plain/haproxy-server")
	var pids []int
	for _, side := range []struct {
		name, section string
		pod           *world.Pod
	}{{"server", haproxyServer, server}, {"client", haproxyClient, w.Pod("plain/haproxy-client")}} {
		text := haproxyHead
		for _, port := range []uint16{echoPort, sinkPort} {
			text += fmt.Sprintf(side.section, port, netip.AddrPortFrom(server.Address(), port+tlsOffset),
				filepath.Join(dir, side.name+".pem"), filepath.Join(dir, "ca.pem"))
		}
		file := filepath.Join(dir, side.name+".cfg")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, err
		}
		cmd := side.pod.Command(ctx, "haproxy", "-q", "-db", "-f", file)
		if err := started.start(cmd); err != nil {
			return nil, err
		}
		pids = append(pids, cmd.Process.Pid)
	}
	return pids, nil
}

// writeCertificates makes a CA and a certificate for each side, with keys as
// Tacit's are: P-256.
func writeCertificates(dir string) error {
	ca, err := issue(nil, "ca")
	if err != nil {
		return err
	}
	errs := os.WriteFile(filepath.Join(dir, "ca.pem"), ca.certificate(), 0o644)
	for _, name := range []string{"client", "server"} {
		leaf, err := issue(ca, name)
		if err != nil {
			return err
		}
		both, err := leaf.withKey()
		errs = errors.Join(errs, err, os.WriteFile(filepath.Join(dir, name+".pem"), both, 0o600))
	}
	return errs
}

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate signed by another, or by itself as a CA.
func issue(by *pair, name string) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if by == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, nil
		by = &pair{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	return &pair{cert, key}, err
}

func (p *pair) certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

func (p *pair) withKey() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{p.certificate(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}, nil), nil
}
