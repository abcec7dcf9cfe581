package caclient_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tacit-mesh/tacit/identity/caclient"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/xds/api/ca"
)

const serverName = "ca.test"

// authority is a certificate authority over gRPC and TLS on loopback.
type authority struct {
	ca.UnimplementedIstioCertificateServiceServer
	*identitytest.CA
	t      *testing.T
	config caclient.Config
	clock  *clock

	mu       sync.Mutex
	life     time.Duration
	failure  error
	token    string
	requests []*ca.IstioCertificateRequest
	metadata []metadata.MD
	asked    func() // before the token is looked at; nil does nothing
	// spoil changes the answer.
	spoil func(template *x509.Certificate, public crypto.PublicKey) []string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{CA: identitytest.NewCA(t), t: t, clock: newClock(), life: 20 * time.Second, token: "secret"}
	dir := t.TempDir()
	a.config = caclient.Config{
		ServerName: serverName,
		RootsFile:  filepath.Join(dir, "roots.pem"),
		TokenFile:  filepath.Join(dir, "token"),
		ClusterID:  "Kubernetes",
		Lifetime:   time.Hour,
		Clock:      a.clock,
	}
	writeFile(t, a.config.RootsFile, pemOf(a.Root))
	writeFile(t, a.config.TokenFile, "secret\n")
	a.config.Address = listen(t, grpc.Creds(credentials.NewServerTLSFromCert(a.serverCertificate())),
		func(s *grpc.Server) { ca.RegisterIstioCertificateServiceServer(s, a) })
	return a
}

func (a *authority) serverCertificate() *tls.Certificate {
	template := identitytest.Template(a.t)
	template.DNSNames = []string{serverName}
	key := identitytest.NewKey(a.t)
	leaf := a.Sign(a.t, template, key.Public())
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}

// listen serves gRPC until the test ends.
func listen(t *testing.T, creds grpc.ServerOption, register func(*grpc.Server)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(creds)
	register(server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return listener.Addr().String()
}

func (a *authority) CreateCertificate(ctx context.Context, r *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	a.requests, a.metadata = append(a.requests, r), append(a.metadata, md)
	if a.asked != nil {
		a.asked()
	}
	if a.failure != nil {
		return nil, a.failure
	}
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+a.token {
		return nil, status.Error(codes.Unauthenticated, "who are you?")
	}
	block, _ := pem.Decode([]byte(r.GetCsr()))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, status.Error(codes.InvalidArgument, "no CSR")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	template := identitytest.Template(a.t)
	template.URIs = csr.URIs
	template.NotBefore = a.clock.Now().Add(-5 * time.Minute)
	template.NotAfter = a.clock.Now().Add(a.life)
	if a.spoil != nil {
		return &ca.IstioCertificateResponse{CertChain: a.spoil(template, csr.PublicKey)}, nil
	}
	leaf := a.Sign(a.t, template, csr.PublicKey)
	return &ca.IstioCertificateResponse{CertChain: []string{pemOf(leaf), pemOf(a.Root)}}, nil
}

// change alters the authority between requests.
func (a *authority) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func pemOf(certs ...*x509.Certificate) string {
	var text string
	for _, c := range certs {
		text += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return text
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// clock is time that passes when the test says so. Whoever waits is reported
// on waiting.
type clock struct {
	waiting chan time.Duration

	mu     sync.Mutex
	time   time.Time
	timers []timer
}

type timer struct {
	left time.Duration
	fire chan time.Time
}

func newClock() *clock {
	return &clock{waiting: make(chan time.Duration, 100), time: time.Now().Round(0)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	fire := make(chan time.Time, 1)
	c.timers = append(c.timers, timer{d, fire})
	c.waiting <- d
	return fire
}

// pass is time as it usually passes.
func (c *clock) pass(d time.Duration) {
	c.set(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	var left []timer
	for _, t := range c.timers {
		if t.left -= d; t.left > 0 {
			left = append(left, t)
			continue
		}
		t.fire <- c.time
	}
	c.timers = left
}

// set moves the wall clock alone, as a suspended machine or an operator does.
func (c *clock) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = c.time.Add(d)
}
