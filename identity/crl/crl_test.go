package crl_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tacit-mesh/tacit/identity/crl"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// revoke is a list in DER, signed by ca, of these certificates.
func revoke(t *testing.T, ca *identitytest.CA, all ...*x509.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(-time.Minute)}
	for _, c := range all {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Root, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func armor(lists ...[]byte) []byte {
	var out bytes.Buffer
	for _, der := range lists {
		_ = pem.Encode(&out, &pem.Block{Type: "X509 CRL", Bytes: der})
	}
	return out.Bytes()
}

func write(t *testing.T, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "crl.pem")
	replace(t, file, content)
	return file
}

// replace puts another file in the place of one, as everybody does who does
// not want half of it to be read.
func replace(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func TestRevoked(t *testing.T) {
	ca, namesake := identitytest.NewCA(t), identitytest.NewCA(t) // of the same name
	leaf := ca.Sign(t, identitytest.Template(t, "spiffe://td/ns/a/sa/b"), identitytest.NewKey(t).Public())
	other := ca.Sign(t, identitytest.Template(t, "spiffe://td/ns/a/sa/c"), identitytest.NewKey(t).Public())
	roots := []*x509.Certificate{namesake.Root, ca.Root}
	for name, test := range map[string]struct {
		content []byte
		revoked bool
	}{
		"nobody's":                             {revoke(t, ca), false},
		"another's":                            {revoke(t, ca, other), false},
		"its own":                              {revoke(t, ca, leaf), true},
		"PEM":                                  {armor(revoke(t, ca, leaf)), true},
		"second of two":                        {armor(revoke(t, ca, other), revoke(t, ca, leaf)), true},
		"not of its issuer":                    {revoke(t, namesake, leaf), false},
		"its own, after one not of its issuer": {armor(revoke(t, namesake, leaf), revoke(t, ca, leaf)), true},
	} {
		t.Run(name, func(t *testing.T) {
			lists, err := crl.Open([]string{write(t, test.content)}, zap.NewNop())
			if err != nil {
				t.Fatal(err)
			}
			err = lists.Revoked([]*x509.Certificate{leaf}, roots)
			if test.revoked != (err != nil) {
				t.Errorf("Revoked = %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "crl.pem") {
				t.Errorf("%v does not name the file", err)
			}
		})
	}
}

func TestIntermediateRevoked(t *testing.T) {
	ca := identitytest.NewCA(t)
	key := identitytest.NewKey(t)
	template := identitytest.Template(t)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	template.Subject.CommonName = "intermediate"
	middle := &identitytest.CA{Root: ca.Sign(t, template, key.Public()), Key: key}
	leaf := middle.Sign(t, identitytest.Template(t, "spiffe://td/ns/a/sa/b"), identitytest.NewKey(t).Public())
	lists, err := crl.Open([]string{write(t, revoke(t, ca, middle.Root))}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := lists.Revoked([]*x509.Certificate{leaf, middle.Root}, []*x509.Certificate{ca.Root}); err == nil {
		t.Error("a chain is accepted whose intermediate is revoked")
	}
}

func TestFilesThatAreNone(t *testing.T) {
	ca := identitytest.NewCA(t)
	good := armor(revoke(t, ca))
	for name, content := range map[string][]byte{
		"empty":         nil,
		"noise":         []byte("noise"),
		"cut":           revoke(t, ca)[:50],
		"cut PEM":       good[:len(good)-20],
		"one good":      append(bytes.Clone(good), "and noise"...),
		"a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}),
		"too large":     make([]byte, 33<<20),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := crl.Open([]string{write(t, content)}, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "crl.pem") {
				t.Errorf("Open = %v", err)
			}
		})
	}
	if _, err := crl.Open([]string{filepath.Join(t.TempDir(), "none")}, zap.NewNop()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open = %v", err)
	}
}

func TestFilesChange(t *testing.T) {
	ca := identitytest.NewCA(t)
	leaf := ca.Sign(t, identitytest.Template(t, "spiffe://td/ns/a/sa/b"), identitytest.NewKey(t).Public())
	revoked := func(l *crl.Lists) bool {
		return l.Revoked([]*x509.Certificate{leaf}, []*x509.Certificate{ca.Root}) != nil
	}
	file := write(t, revoke(t, ca))
	lists, err := crl.Open([]string{file}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := lists.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	wait := func(changed <-chan struct{}) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatal("the change is not noticed")
		}
	}
	changed := lists.Changed()
	replace(t, file, armor(revoke(t, ca, leaf)))
	wait(changed)
	if !revoked(lists) {
		t.Fatal("not revoked")
	}
	changed = lists.Changed()
	replace(t, file, []byte("noise"))
	replace(t, file, revoke(t, ca)) // the noise is read or not; either way only this is a change
	wait(changed)
	if revoked(lists) {
		t.Error("still revoked")
	}
}
