package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	serverName = "tacitd.test"
	patience   = 20 * time.Second // for what should happen at once
)

// next receives, or fails the test after a while.
func next[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// authority is a certificate authority that lives for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = issue(t, nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) server(t testing.TB) tls.Certificate {
	cert, key := issue(t, a, &x509.Certificate{DNSNames: []string{serverName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func issue(t testing.TB, by *authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by = &authority{template, key}
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	raw, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// server speaks the delta protocol over TLS on loopback, as the test says.
type server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	address string
	ca      *authority
	streams chan *stream
	stop    func() // hard, as by SIGKILL
	token   string // refused without it, if set
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{ca: newAuthority(t), streams: make(chan *stream, 1), address: "127.0.0.1:0"}
	s.start(t)
	return s
}

// start serves, a second time at the same address.
func (s *server) start(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(new(s.ca.server(t)))))
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(listener) }()
	s.stop = func() { g.Stop(); <-served }
	t.Cleanup(s.stop)
}

// DeltaAggregatedResources hands the stream to the test and lives until the
// test or the client ends it.
func (s *server) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(g.Context())
	if s.token != "" && (len(md["authorization"]) != 1 || md["authorization"][0] != "Bearer "+s.token) {
		return status.Error(codes.Unauthenticated, "who are you?")
	}
	st := &stream{grpc: g, metadata: md, requests: make(chan *discovery.DeltaDiscoveryRequest, 10), ended: make(chan error, 1)}
	select {
	case s.streams <- st:
	case <-g.Context().Done():
		return g.Context().Err()
	}
	go st.read()
	select {
	case err := <-st.ended:
		return err
	case <-g.Context().Done():
		return g.Context().Err()
	}
}

// stream is one connection, seen from the server.
type stream struct {
	grpc     discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	metadata metadata.MD
	requests chan *discovery.DeltaDiscoveryRequest
	ended    chan error
	marks    []string // of batches of names that have been asked for and not been answered
}

func (s *stream) read() {
	for {
		r, err := s.grpc.Recv()
		if err != nil {
			return
		}
		select {
		case s.requests <- r:
		case <-s.grpc.Context().Done():
			return
		}
	}
}

// subscriptions are a connection's first two requests.
func (s *stream) subscriptions(t *testing.T) (policies, addresses *discovery.DeltaDiscoveryRequest) {
	t.Helper()
	return next(t, "the first subscription", s.requests), next(t, "the second subscription", s.requests)
}

// respond sends a response and returns the client's answer.
func (s *stream) respond(t *testing.T, r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	t.Helper()
	if err := s.grpc.Send(r); err != nil {
		t.Fatal(err)
	}
	answer := next(t, "an answer", s.requests)
	if answer.GetResponseNonce() != r.GetNonce() || answer.GetTypeUrl() != r.GetTypeUrl() {
		t.Fatalf("answer to %s %q names %s %q", r.GetTypeUrl(), r.GetNonce(), answer.GetTypeUrl(), answer.GetResponseNonce())
	}
	return answer
}

func (s *stream) mustAck(t *testing.T, r *discovery.DeltaDiscoveryResponse) {
	t.Helper()
	if answer := s.respond(t, r); answer.GetErrorDetail() != nil {
		t.Fatalf("rejected: %s", answer.GetErrorDetail().GetMessage())
	}
}

func (s *stream) mustNack(t *testing.T, r *discovery.DeltaDiscoveryResponse) string {
	t.Helper()
	answer := s.respond(t, r)
	if answer.GetErrorDetail() == nil {
		t.Fatal("accepted what should be rejected")
	}
	return answer.GetErrorDetail().GetMessage()
}

// running is a client at work.
type running struct {
	*Client
	sink  *recorder
	stop  func() // ends Run and waits for it
	asked []string
}

// config is one that reaches the server.
func (s *server) config(t *testing.T) Config {
	t.Helper()
	return Config{
		Server:     s.address,
		ServerName: serverName,
		RootsFile:  writeFile(t, "roots", s.ca.pem()),
		Node:       Node{Name: "node-a"},
	}
}

func run(t *testing.T, c *Client) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	r := &running{Client: c}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := next(t, "the end of Run", ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want the context's error", err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

// start runs a new client with a recorder as its sink.
func (s *server) startClient(t *testing.T, change func(*Config)) *running {
	t.Helper()
	config := s.config(t)
	sink := newRecorder()
	config.Sink = sink
	if change != nil {
		change(&config)
	}
	r := run(t, New(config))
	r.sink = sink
	return r
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
