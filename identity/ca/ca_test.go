package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	api "github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
)

const webID = "spiffe://cluster.local/ns/shop/sa/web"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// request describes a call; its zero value but for the fields that newRequest
// sets is a good one.
type request struct {
	key      crypto.Signer
	template x509.CertificateRequest
	wanted   string
	seconds  int64
	node     string
	spoil    func(pem string) string
}

func newRequest() *request {
	return &request{
		key:      must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		template: x509.CertificateRequest{URIs: []*url.URL{must(url.Parse(webID))}},
		wanted:   webID,
		node:     "n1",
		spoil:    func(s string) string { return s },
	}
}

type nodeKey struct{}

func (r *request) call(s *Service) (*api.IstioCertificateResponse, error) {
	der := must(x509.CreateCertificateRequest(rand.Reader, &r.template, r.key))
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	return s.CreateCertificate(context.WithValue(context.Background(), nodeKey{}, r.node), &api.IstioCertificateRequest{
		Csr: r.spoil(text), ValidityDuration: r.seconds,
		Metadata: must(structpb.NewStruct(map[string]any{"ImpersonatedIdentity": r.wanted})),
	})
}

func newService(t *testing.T) *Service {
	t.Helper()
	return &Service{
		Authority: must(Open(t.TempDir(), "cluster.local")), TrustDomain: "cluster.local", MaxTTL: 48 * time.Hour, Log: zap.NewNop(),
		Node: func(ctx context.Context) string { return ctx.Value(nodeKey{}).(string) },
		Authorize: func(_ context.Context, node string, id model.Identity) error {
			if node != "n1" || id.ServiceAccount != "web" {
				return errors.New("not here")
			}
			return nil
		},
	}
}

func parse(t *testing.T, text string) (out []*x509.Certificate) {
	t.Helper()
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		out = append(out, must(x509.ParseCertificate(block.Bytes)))
	}
}

func TestLeaf(t *testing.T) {
	s, r := newService(t), newRequest()
	// None of this may find its way into the certificate.
	r.template.Subject = pkix.Name{CommonName: "admin"}
	r.template.DNSNames = []string{"evil.example"}
	r.template.IPAddresses = []net.IP{net.IPv4(1, 2, 3, 4)}
	r.template.EmailAddresses = []string{"a@b"}
	r.template.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}} // CA: true
	answer, err := r.call(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.CertChain) != 2 {
		t.Fatalf("%d elements, want leaf and root", len(answer.CertChain))
	}
	leaf, root := parse(t, answer.CertChain[0])[0], parse(t, answer.CertChain[1])[0]
	roots := x509.NewCertPool()
	roots.AddCert(root)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != webID || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		t.Errorf("names: %v %v %v %v", leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses)
	}
	if leaf.IsCA || leaf.Subject.String() != "" || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 2 {
		t.Errorf("CA %v, subject %q, usage %v %v", leaf.IsCA, leaf.Subject, leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	if leaf.SerialNumber.BitLen() < 90 || leaf.SerialNumber.BitLen() > 128 || leaf.SerialNumber.Sign() < 1 {
		t.Errorf("serial number %v", leaf.SerialNumber)
	}
	if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(r.key.Public()) {
		t.Error("another key")
	}
	if got := s.Stats(); got != (Stats{Issued: 1}) {
		t.Errorf("stats %+v", got)
	}
}

func TestValidity(t *testing.T) {
	s := newService(t)
	now := time.Now().Add(time.Hour).Truncate(time.Second)
	s.Authority.now = func() time.Time { return now }
	for _, test := range []struct {
		seconds int64
		want    time.Duration
	}{
		{0, DefaultTTL}, {3600, time.Hour}, {1, MinTTL}, {1 << 62, s.MaxTTL}, {int64(s.MaxTTL/time.Second) + 1, s.MaxTTL},
	} {
		r := newRequest()
		r.seconds = test.seconds
		answer, err := r.call(s)
		if err != nil {
			t.Fatal(err)
		}
		leaf := parse(t, answer.CertChain[0])[0]
		if got := leaf.NotAfter.Sub(now); got != test.want || now.Sub(leaf.NotBefore) != backdate {
			t.Errorf("%d s: until %v from now, from %v before, want %v and %v", test.seconds, got, now.Sub(leaf.NotBefore), test.want, backdate)
		}
	}
	now = s.Authority.NotAfter().Add(-time.Minute)
	if leaf := parse(t, must(newRequest().call(s)).CertChain[0])[0]; leaf.NotAfter.After(s.Authority.NotAfter()) {
		t.Error("it outlives the CA")
	}
	now = s.Authority.NotAfter()
	if _, err := newRequest().call(s); status.Code(err) != codes.Unavailable {
		t.Errorf("after the CA's end: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	uri := func(s string) *url.URL { return must(url.Parse(s)) }
	for _, test := range []struct {
		name  string
		spoil func(*request)
		code  codes.Code
		want  string
	}{
		{"no node", func(r *request) { r.node = "" }, codes.Unauthenticated, "no known node"},
		{"another node", func(r *request) { r.node = "n2" }, codes.PermissionDenied, "not here"},
		{"no identity", func(r *request) { r.wanted = "" }, codes.InvalidArgument, "ImpersonatedIdentity"},
		{"an identity of another form", func(r *request) { r.wanted = "spiffe://cluster.local/web" }, codes.InvalidArgument, "ImpersonatedIdentity"},
		{"another trust domain", func(r *request) { r.wanted = "spiffe://other/ns/shop/sa/web" }, codes.PermissionDenied, "trust domain"},
		{"one identity asked for, another requested", func(r *request) { r.template.URIs = []*url.URL{uri("spiffe://cluster.local/ns/shop/sa/admin")} }, codes.InvalidArgument, "exactly the identity"},
		{"an identity that is not the node's", func(r *request) {
			r.wanted = "spiffe://cluster.local/ns/shop/sa/admin"
			r.template.URIs = []*url.URL{uri(r.wanted)}
		}, codes.PermissionDenied, "not here"},
		{"two URIs", func(r *request) { r.template.URIs = append(r.template.URIs, uri("spiffe://cluster.local/ns/a/sa/b")) }, codes.InvalidArgument, "exactly the identity"},
		{"the same URI twice", func(r *request) { r.template.URIs = append(r.template.URIs, uri(webID)) }, codes.InvalidArgument, "exactly the identity"},
		{"no URI", func(r *request) { r.template.URIs = nil }, codes.InvalidArgument, "exactly the identity"},
		{"a DNS name alone", func(r *request) { r.template.URIs, r.template.DNSNames = nil, []string{"a.example"} }, codes.InvalidArgument, "exactly the identity"},
		{"P-224", func(r *request) { r.key = must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)) }, codes.InvalidArgument, "the key must be"},
		{"RSA", func(r *request) { r.key = must(rsa.GenerateKey(rand.Reader, 2048)) }, codes.InvalidArgument, "the key must be"},
		{"Ed25519", func(r *request) { _, k, err := ed25519.GenerateKey(rand.Reader); r.key = must(k, err) }, codes.InvalidArgument, "the key must be"},
		{"negative validity", func(r *request) { r.seconds = -1 }, codes.InvalidArgument, "negative"},
		{"no PEM", func(r *request) { r.spoil = func(string) string { return "x" } }, codes.InvalidArgument, "one PEM block"},
		{"another PEM block", func(r *request) { r.spoil = func(s string) string { return strings.ReplaceAll(s, "REQUEST", "") } }, codes.InvalidArgument, "one PEM block"},
		{"two blocks", func(r *request) { r.spoil = func(s string) string { return s + s } }, codes.InvalidArgument, "one PEM block"},
		{"too large", func(r *request) { r.spoil = func(s string) string { return s + strings.Repeat("\n", maxRequest) } }, codes.InvalidArgument, "the limit is"},
		{"a signature by another key", func(r *request) { r.spoil = forge }, codes.InvalidArgument, "signature"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, r := newService(t), newRequest()
			test.spoil(r)
			_, err := r.call(s)
			if status.Code(err) != test.code || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %v with %q", err, test.code, test.want)
			}
			if got := s.Stats(); got != (Stats{Refused: 1}) {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

// forge flips a bit in the signature, which is at the end.
func forge(text string) string {
	block, _ := pem.Decode([]byte(text))
	block.Bytes[len(block.Bytes)-1] ^= 1
	return string(pem.EncodeToMemory(block))
}

func TestFlood(t *testing.T) {
	s := newService(t)
	limit := s.limit("n1")
	limit.SetLimit(0) // lest there is a new one by the time of the call
	for range burst {
		limit.Allow()
	}
	if _, err := newRequest().call(s); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v, want ResourceExhausted", err)
	}
	r := newRequest()
	r.node = "n2"
	if _, err := r.call(s); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another node suffers: %v", err)
	}
}

func TestOpenCreatesOnceAndKeeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var all [8]*Authority
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i] = must(Open(dir, "cluster.local")) })
	}
	wg.Wait()
	for _, a := range all {
		if string(a.Roots()) != string(all[0].Roots()) {
			t.Fatal("two that start at once do not agree")
		}
	}
	for name, mode := range map[string]os.FileMode{keyFile: 0o600, rootFile: 0o644} {
		if got := must(os.Stat(filepath.Join(dir, name))).Mode().Perm(); got != mode {
			t.Errorf("%s has mode %v, want %v", name, got, mode)
		}
	}
	if entries := must(os.ReadDir(dir)); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(dir string)
		want  string
	}{
		{"key for the group", func(dir string) { _ = os.Chmod(filepath.Join(dir, keyFile), 0o640) }, "only its owner can read"},
		{"key gone", func(dir string) { _ = os.Remove(filepath.Join(dir, keyFile)) }, "bring the key back"},
		{"another key", func(dir string) {
			_ = os.Remove(filepath.Join(dir, keyFile))
			if err := createOnce(filepath.Join(dir, keyFile), 0o600, newKey); err != nil {
				panic(err)
			}
		}, "for another key"},
		{"key broken", func(dir string) { _ = os.WriteFile(filepath.Join(dir, keyFile), []byte("x"), 0o600) }, "want one private key"},
		{"certificate empty", func(dir string) { _ = os.WriteFile(filepath.Join(dir, rootFile), nil, 0o600) }, "no certificate"},
		{"a leaf as CA", func(dir string) {
			a := must(Open(dir, "x"))
			leaf := must(a.issuer().sign(&x509.Certificate{DNSNames: []string{"a"}}, a.issuer().key.Public(), time.Hour, time.Now()))
			_ = os.WriteFile(filepath.Join(dir, rootFile), encode(leaf), 0o600)
		}, "may not sign"},
	} {
		dir := t.TempDir()
		must(Open(dir, "cluster.local"))
		test.spoil(dir)
		if _, err := Open(dir, "cluster.local"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
	}
}

// An operator's intermediate: the chain carries it, the bundle does not.
func TestIntermediate(t *testing.T) {
	root, dir := must(Open(t.TempDir(), "root")).issuer(), t.TempDir()
	if err := createOnce(filepath.Join(dir, keyFile), 0o600, newKey); err != nil {
		t.Fatal(err)
	}
	key := must(parseKey(must(os.ReadFile(filepath.Join(dir, keyFile)))))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "between"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root.signer.MaxPathLen, root.signer.MaxPathLenZero = -1, false
	der := must(x509.CreateCertificate(rand.Reader, template, root.signer, key.Public(), root.key))
	between := must(x509.ParseCertificate(der))
	top := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: root.signer.Subject, SubjectKeyId: root.signer.SubjectKeyId, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, root.signer, root.key.Public(), root.key))))
	if err := os.WriteFile(filepath.Join(dir, rootFile), encode(between, top), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newService(t)
	var err error
	if s.Authority, err = Open(dir, "cluster.local"); err != nil {
		t.Fatal(err)
	}
	chain := must(newRequest().call(s)).CertChain
	if len(chain) != 3 || chain[1] != string(encode(between)) || chain[2] != string(encode(top)) {
		t.Errorf("%d elements, want leaf, intermediate, root", len(chain))
	}
	if served := must(must(s.Authority.ServerCertificate("a"))(nil)); len(served.Certificate) != 2 {
		t.Errorf("%d certificates served, want leaf and intermediate", len(served.Certificate))
	}
}

func TestServerCertificateIsRenewed(t *testing.T) {
	a := must(Open(t.TempDir(), "cluster.local"))
	now := time.Now()
	a.now = func() time.Time { return now }
	get := must(a.ServerCertificate("tacitd.example"))
	first := must(get(nil))
	if got := first.Leaf.DNSNames; len(got) != 1 || got[0] != "tacitd.example" {
		t.Errorf("names %v", got)
	}
	now = halfLife(first.Leaf).Add(-time.Second)
	if again := must(get(nil)); again != first {
		t.Error("renewed before half of its life")
	}
	now = halfLife(first.Leaf)
	if again := must(get(nil)); again == first || again.Leaf.NotAfter.Before(first.Leaf.NotAfter) {
		t.Error("not renewed at half of its life")
	}
	now = a.NotAfter()
	if _, err := get(nil); err == nil {
		t.Error("an expired certificate is served")
	}
}
