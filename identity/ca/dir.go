package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	keyFile  = "ca.key"
	rootFile = "ca.crt"

	rootLife = 10 * 365 * 24 * time.Hour
)

// Open reads the authority of a directory: ca.key, a private key in PKCS #8,
// with mode 0600, and ca.crt, its certificate, after which intermediates and
// roots may follow. What is missing is made: a P-256 key, and a root that
// signs itself and names trustDomain. What is there is never written over.
func Open(dir, trustDomain string) (*Authority, error) {
	a, err := open(dir, trustDomain)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority in %s: %w", dir, err)
	}
	return a, nil
}

func open(dir, trustDomain string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	keyPath, rootPath := filepath.Join(dir, keyFile), filepath.Join(dir, rootFile)
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(rootPath); err == nil {
			return nil, fmt.Errorf("%s is there without its %s: bring the key back, or move the certificate away to start anew", rootFile, keyFile)
		}
		if err := createOnce(keyPath, 0o600, newKey); err != nil {
			return nil, err
		}
		key, err = readKey(keyPath) // another process may have been first
	}
	if err != nil {
		return nil, err
	}
	certificates, err := readCertificates(rootPath)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createOnce(rootPath, 0o644, func() ([]byte, error) { return newRoot(key, trustDomain) }); err != nil {
			return nil, err
		}
		certificates, err = readCertificates(rootPath)
	}
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(key, certificates)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rootFile, err)
	}
	return a, nil
}

// createOnce makes a file with all of its content at once, unless there is
// one already.
func createOnce(path string, mode fs.FileMode, content func() ([]byte, error)) error {
	data, err := content()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func newKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func newRoot(key crypto.Signer, trustDomain string) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	id := sha256.Sum256(public)
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Tacit root of " + trustDomain},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          id[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func readKey(path string) (crypto.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %s: it must be a file that only its owner can read (chmod 600, and think about who may have read it)", keyFile, info.Mode())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(rest) > 0 {
		return nil, errors.New("want one private key in PEM")
	}
	if block.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a private key in PKCS #8") // the parser's text may quote the key
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("this kind of key cannot sign")
	}
	return signer, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rootFile, err)
	}
	return out, nil
}

func parseCertificates(data []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
}
