package identity_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
)

// withSHA1 is a certificate of an RSA key with the signature that the standard
// library makes no more.
func withSHA1(t *testing.T, c *x509.Certificate, signer *rsa.PrivateKey) *x509.Certificate {
	t.Helper()
	sha256WithRSA := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b}
	sha1WithRSA := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05}
	signed := bytes.Replace(c.RawTBSCertificate, sha256WithRSA, sha1WithRSA, 1)
	digest := sha1.Sum(signed)
	signature, err := rsa.SignPKCS1v15(rand.Reader, signer, crypto.SHA1, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	raw := bytes.ReplaceAll(c.Raw, sha256WithRSA, sha1WithRSA)
	copy(raw[len(raw)-len(signature):], signature)
	weak, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	if weak.SignatureAlgorithm != x509.SHA1WithRSA {
		t.Fatalf("the signature is %v", weak.SignatureAlgorithm)
	}
	return weak
}

// What a peer shows is judged whole, at a price that has a bound, and both
// directions say what is wrong with whom.
func TestChainsOfPeers(t *testing.T) {
	large, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	small := func() crypto.Signer { return identitytest.NewKey(t) }
	root := identitytest.NewCA(t)
	key := identitytest.NewKey(t)
	leaf := func(by *identitytest.CA) *x509.Certificate {
		return by.Sign(t, identitytest.Template(t, alice.String()), key.Public())
	}
	deep, chain9 := root.Below(t, 9, small)
	twenty, chain20 := root.Below(t, 20, small)
	three, chain3 := root.Below(t, 3, small)
	big, chainOfBig := root.Below(t, 3, func() crypto.Signer { return large })
	bigLeaf := big.Sign(t, identitytest.Template(t, alice.String()), large.Public())
	for name, test := range map[string]struct {
		key    crypto.Signer
		chain  []*x509.Certificate
		reason string // "" if it is good
		says   string
	}{
		"9 intermediates":          {key, slices.Concat([]*x509.Certificate{leaf(deep)}, chain9), "", ""},
		"20 intermediates":         {key, slices.Concat([]*x509.Certificate{leaf(twenty)}, chain20), "bad_certificate", "a chain of 21 certificates, at most 10 are possible"},
		"a missing intermediate":   {key, slices.Concat([]*x509.Certificate{leaf(three)}, chain3[:1], chain3[2:]), "unknown_authority", "unknown authority"},
		"the last one missing":     {key, slices.Concat([]*x509.Certificate{leaf(three)}, chain3[:2]), "unknown_authority", "unknown authority"},
		"RSA of 4096 bits":         {large, slices.Concat([]*x509.Certificate{bigLeaf}, chainOfBig), "", ""},
		"a signature with SHA-1":   {large, slices.Concat([]*x509.Certificate{withSHA1(t, bigLeaf, large)}, chainOfBig), "unknown_authority", "insecure algorithm SHA1-RSA"},
		"an intermediate by SHA-1": {large, []*x509.Certificate{bigLeaf, withSHA1(t, chainOfBig[0], large), chainOfBig[1], chainOfBig[2]}, "unknown_authority", "insecure algorithm SHA1-RSA"},
	} {
		t.Run(name, func(t *testing.T) {
			cert := &tls.Certificate{PrivateKey: test.key, Leaf: test.chain[0]}
			for _, c := range test.chain {
				cert.Certificate = append(cert.Certificate, c.Raw)
			}
			judge := root.Issue(t, bob)
			client := identity.ClientConfig(judge, []string{bob.String()})
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			_, _, byServer := handshake(t, client, identity.ServerConfig(getter(judge)))
			server := identity.ServerConfig(getter(judge))
			server.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }
			_, byClient, _ := handshake(t, identity.ClientConfig(judge, []string{alice.String()}), server)
			for who, err := range map[string]error{"server": byServer, "client": byClient} {
				if got := identity.FailureReason(err); got != test.reason {
					t.Errorf("%s: reason %q (%v), want %q", who, got, err, test.reason)
				}
				if err != nil && (!strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), alice.String())) {
					t.Errorf("%s says %v, want a word of %q and %s", who, err, test.says, alice)
				}
			}
		})
	}
}

// A workload is client and server, so a chain that is good for one of these
// alone is refused before it is presented, wherever it says so.
func TestUsagesOfChains(t *testing.T) {
	server, client, both := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	root := identitytest.NewCA(t)
	for name, test := range map[string]struct {
		authority, leaf []x509.ExtKeyUsage
		unknown         []asn1.ObjectIdentifier // of the leaf
		good            bool
	}{
		"both":                     {leaf: both, good: true},
		"none named":               {good: true},
		"any":                      {authority: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, leaf: both, good: true},
		"an authority for both":    {authority: both, leaf: both, good: true},
		"both and another":         {leaf: both, unknown: []asn1.ObjectIdentifier{{1, 2, 3}}, good: true},
		"servers alone":            {leaf: []x509.ExtKeyUsage{server}},
		"clients alone":            {leaf: []x509.ExtKeyUsage{client}},
		"an authority for servers": {authority: []x509.ExtKeyUsage{server}, leaf: both},
		"an authority for clients": {authority: []x509.ExtKeyUsage{client}, leaf: both},
		"something else":           {leaf: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}},
		"something unknown":        {unknown: []asn1.ObjectIdentifier{{1, 2, 3}}},
	} {
		t.Run(name, func(t *testing.T) {
			template := identitytest.Template(t)
			template.Subject = pkix.Name{CommonName: "intermediate"}
			template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, test.authority
			signer := &identitytest.CA{Key: identitytest.NewKey(t)}
			signer.Root = root.Sign(t, template, signer.Key.Public())
			leaf := identitytest.Template(t, alice.String())
			leaf.ExtKeyUsage, leaf.UnknownExtKeyUsage = test.leaf, test.unknown
			chain := []*x509.Certificate{signer.Sign(t, leaf, identitytest.NewKey(t).Public()), signer.Root}
			err := identity.CheckChain(chain, []*x509.Certificate{root.Root}, alice, time.Now())
			if reason := identity.FailureReason(err); test.good && err != nil || !test.good && reason != "bad_usage" {
				t.Errorf("%v, as %q", err, reason)
			}
		})
	}
}
