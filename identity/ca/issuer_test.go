package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// link is a certificate of a hierarchy, and its key.
type link struct {
	template *x509.Certificate
	key      crypto.Signer
	made     *x509.Certificate
}

// hierarchy is a root, first, and CAs below each other; the last one signs
// workloads.
type hierarchy []*link

// newHierarchy has so many CAs below the root. A test may change templates and
// keys before state makes the certificates.
func newHierarchy(t *testing.T, intermediates int) hierarchy {
	t.Helper()
	var h hierarchy
	for i := range intermediates + 1 {
		h = append(h, &link{
			key: must(parseKey(must(newKey()))),
			template: &x509.Certificate{
				SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: fmt.Sprintf("CA %d", i)},
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
				IsCA: true, BasicConstraintsValid: true, MaxPathLen: -1, KeyUsage: x509.KeyUsageCertSign,
			},
		})
	}
	return h
}

// make signs all from the root down.
func (h hierarchy) make() hierarchy {
	for i, l := range h {
		parent := l
		if i > 0 {
			parent = h[i-1]
		}
		by := parent.template
		if parent.made != nil {
			by = parent.made
		}
		l.made = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, l.template, by, l.key.Public(), parent.key))))
	}
	return h
}

// state is in cert-manager's layout: the chain without its root, and the root.
func (h hierarchy) state() *State {
	h.make()
	s := &State{Roots: encode(h[0].made)}
	for i := len(h) - 1; i > 0; i-- {
		s.Chain = append(s.Chain, encode(h[i].made)...)
	}
	key := must(x509.MarshalPKCS8PrivateKey(h[len(h)-1].key))
	s.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	return s
}

// What tacitd hands out holds every intermediate, in order, and no root.
func TestHierarchy(t *testing.T) {
	for _, intermediates := range []int{1, 2, 8} {
		h := newHierarchy(t, intermediates)
		store := &memory{state: *h.state()}
		a := replica(t, store, &clock{time.Now()})
		m := issue(t, a)
		if err := m.Check(time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := len(m.Certificate.Certificate); got != intermediates+1 {
			t.Errorf("%d intermediates: a chain of %d", intermediates, got)
		}
		for i, c := range a.issuer().intermediates {
			if !c.Equal(h[intermediates-i].made) {
				t.Errorf("%d intermediates: number %d is %q", intermediates, i, c.Subject)
			}
		}
		if string(a.Roots()) != string(encode(h[0].made)) {
			t.Errorf("roots %s", a.Roots())
		}
	}
}

// Order, doubles, and a root among the chain make no difference.
func TestHierarchyInAnyOrder(t *testing.T) {
	h := newHierarchy(t, 3)
	s := h.state()
	s.Chain = encode(h[3].made, h[0].made, h[1].made, h[2].made, h[1].made)
	i, err := newIssuer(s, "cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := encode(i.intermediates...); string(got) != string(encode(h[3].made, h[2].made, h[1].made)) {
		t.Errorf("the chain is %q", names(i.intermediates))
	}
}

// An intermediate that is itself the anchor needs nothing above it.
func TestAnchorThatIsNoRoot(t *testing.T) {
	h := newHierarchy(t, 2)
	s := h.state()
	s.Chain, s.Roots = encode(h[2].made), encode(h[1].made)
	if _, err := newIssuer(s, "cluster.local", time.Now()); err != nil {
		t.Error(err)
	}
}

func TestBadHierarchies(t *testing.T) {
	small := must(rsa.GenerateKey(rand.Reader, 1024)) //nolint:gosec // a bad key, on purpose
	for _, test := range []struct {
		name          string
		intermediates int
		spoil         func(hierarchy)         // before it is made
		change        func(hierarchy, *State) // after
		want          string
	}{
		{"a missing intermediate", 2, nil, func(h hierarchy, s *State) { s.Chain = encode(h[2].made) },
			`the certificate of "CN=CA 1", which signed it, is missing`},
		{"a missing root", 1, nil, func(_ hierarchy, s *State) { s.Roots = nil }, `the certificate of "CN=CA 0", which signed it, is missing`},
		{"another root", 1, nil, func(_ hierarchy, s *State) { s.Roots = mustRoot() }, `the certificate of "CN=CA 0", which signed it, is missing`},
		{"the key of another", 1, nil, func(_ hierarchy, s *State) { s.Key = must(newKey()) }, "is for another key"},
		{"no CA", 1, func(h hierarchy) { h[1].template.IsCA = false }, nil, "it is no CA's"},
		{"no basic constraints", 1, func(h hierarchy) { h[1].template.BasicConstraintsValid = false }, nil, "it is no CA's"},
		{"wrong key usage", 1, func(h hierarchy) { h[1].template.KeyUsage = x509.KeyUsageDigitalSignature }, nil, "lacks certificate signing"},
		{"wrong key usage above", 2, func(h hierarchy) { h[1].template.KeyUsage = x509.KeyUsageCRLSign }, nil, "lacks certificate signing"},
		{"for servers only", 1, func(h hierarchy) { h[1].template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, nil, "key usage"},
		{"path length", 2, func(h hierarchy) { h[0].template.MaxPathLen, h[0].template.MaxPathLenZero = 1, false }, nil, "(path length)"},
		{"path length 0", 1, func(h hierarchy) { h[0].template.MaxPathLen, h[0].template.MaxPathLenZero = 0, true }, nil, "(path length)"},
		{"names of others only", 1, func(h hierarchy) {
			h[1].template.PermittedDNSDomainsCritical, h[1].template.PermittedURIDomains = true, []string{"other.example"}
		}, nil, "not permitted"},
		{"20 intermediates", 20, nil, nil, "a chain of 21 certificates, of which peers accept 10"},
		{"10 intermediates", 10, nil, nil, "a chain of 11 certificates"},
		{"too many certificates", 1, nil, func(h hierarchy, s *State) {
			for range maxCertificates {
				s.Chain = append(s.Chain, encode(h[1].made)...)
			}
		}, "more than 64"},
		{"ended", 1, func(h hierarchy) { h[1].template.NotAfter = time.Now().Add(-time.Minute) }, nil, "put a newer one in its place"},
		{"ended above", 2, func(h hierarchy) { h[1].template.NotAfter = time.Now().Add(-time.Minute) }, nil, `"CN=CA 1" is valid from`},
		{"not valid yet", 1, func(h hierarchy) { h[1].template.NotBefore = time.Now().Add(time.Minute) }, nil, "is valid from"},
		{"SHA-1", 1, func(h hierarchy) { h[0].key = must(rsa.GenerateKey(rand.Reader, 2048)) }, func(h hierarchy, s *State) {
			s.Chain = sha1Signed(h[1].made, h[0].key)
		}, "weak signature, SHA1-RSA"},
		{"a small key", 1, func(h hierarchy) { h[0].key = small }, nil, "RSA key of 1024 bits"},
		{"a key among the certificates", 1, nil, func(_ hierarchy, s *State) { s.Chain = append(s.Chain, s.Key...) }, `a PEM block "PRIVATE KEY" among the certificates`},
		{"no certificate", 1, nil, func(_ hierarchy, s *State) { s.Chain = nil }, "no certificate"},
		{"another signature", 1, nil, func(h hierarchy, s *State) {
			other := newHierarchy(t, 1) // of the same names
			s.Roots = encode(other.make()[0].made)
		}, "leads to no root"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.Contains(test.name, "small") {
				t.Setenv("GODEBUG", "rsa1024min=0")
			}
			h := newHierarchy(t, test.intermediates)
			if test.spoil != nil {
				test.spoil(h)
			}
			s := h.state()
			if test.change != nil {
				test.change(h, s)
			}
			_, err := newIssuer(s, "cluster.local", time.Now())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func mustRoot() []byte {
	_, root, err := Generate("cluster.local")
	if err != nil {
		panic(err)
	}
	return root
}

// sha1Signed is a certificate as it would be had the key signed it with SHA-1,
// which crypto/x509 does not do any more.
func sha1Signed(c *x509.Certificate, key crypto.Signer) []byte {
	sha256, sha1 := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b}, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05}
	tbs := []byte(strings.ReplaceAll(string(c.RawTBSCertificate), string(sha256), string(sha1)))
	digest := crypto.SHA1.New()
	digest.Write(tbs)
	signature := must(key.Sign(rand.Reader, digest.Sum(nil), crypto.SHA1))
	der := must(asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}))
	return encode(must(x509.ParseCertificate(der)))
}

// A 4096-bit RSA chain works.
func TestLargeRSA(t *testing.T) {
	h := newHierarchy(t, 1)
	key := must(rsa.GenerateKey(rand.Reader, 4096))
	h[0].key, h[1].key = key, key
	if _, err := newIssuer(h.state(), "cluster.local", time.Now()); err != nil {
		t.Error(err)
	}
}

// A mounted Secret of cert-manager is used, and followed when it is replaced.
func TestMountedSecret(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	mount := func(s *State) {
		t.Helper()
		for name, content := range map[string][]byte{foreignKeyFile: s.Key, foreignChainFile: s.Chain, rootFile: s.Roots} {
			if err := replace(filepath.Join(dir, name), 0o640, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := newHierarchy(t, 2)
	mount(first.state())
	store := must(OpenDir(dir, "cluster.local"))
	a := replica(t, store, c)
	if got := len(issue(t, a).Certificate.Certificate); got != 3 {
		t.Errorf("a chain of %d, want 3", got)
	}
	second := newHierarchy(t, 1)
	s := second.state()
	if err := replace(filepath.Join(dir, foreignKeyFile), 0o640, s.Key); err != nil {
		t.Fatal(err)
	}
	if err := a.follow(t.Context()); err == nil || !strings.Contains(err.Error(), "is for another key") || !a.issuer().signer.Equal(first[2].made) {
		t.Errorf("half a replacement: %v", err)
	}
	mount(s)
	if follow(t, a); !a.issuer().signer.Equal(second[1].made) {
		t.Error("the replacement is not used")
	}
	if err := store.Request("1"); err != nil {
		t.Fatal(err)
	}
	if err := a.follow(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody else's") {
		t.Errorf("rotation: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, foreignKeyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), store, Config{TrustDomain: "cluster.local"}); err == nil || !strings.Contains(err.Error(), "only its owner can read") {
		t.Errorf("a key for everybody: %v", err)
	}
}
