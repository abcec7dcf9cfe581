package caclient_test

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/ca"
	"github.com/tacit-mesh/tacit/identity/caclient"
	api "github.com/tacit-mesh/tacit/xds/api/ca"
	"github.com/tacit-mesh/tacit/xds/model"
)

// The whole way: a certificate from the authority through the store into a
// handshake.
func TestWithStore(t *testing.T) {
	a := newAuthority(t)
	client, err := caclient.New(a.config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	store := identity.NewStore(client, identity.WithClock(a.clock.Now))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = store.Run(ctx) })
	defer running.Wait()
	defer cancel()
	defer store.Acquire(identity.Subject{Identity: alice})()
	m, err := store.Get(t.Context(), identity.Subject{Identity: alice})
	if err != nil {
		t.Fatal(err)
	}
	config := identity.ServerConfig(func() (*identity.Material, error) { return store.Get(t.Context(), identity.Subject{Identity: alice}) }, identity.WithClock(a.clock.Now))
	shown, err := config.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil || shown != m.Certificate {
		t.Errorf("the server shows %v, %v", shown, err)
	}
}

// With the control plane's own authority in the place of the test's.
func TestWithOwnAuthority(t *testing.T) {
	signer, err := ca.Open(t.TempDir(), alice.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := signer.ServerCertificate(serverName)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var allowed error
	service := &ca.Service{
		Authority: signer, TrustDomain: alice.TrustDomain, Log: zap.NewNop(),
		Node: func(context.Context) string { return "node-a" },
		Authorize: func(context.Context, string, model.Identity) error {
			mu.Lock()
			defer mu.Unlock()
			return allowed
		},
	}
	allowed = errors.New("no such pod on node-a")
	a := newAuthority(t)
	a.config.Address = listen(t, grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificate})),
		func(s *grpc.Server) { api.RegisterIstioCertificateServiceServer(s, service) })
	writeFile(t, a.config.RootsFile, string(signer.Roots()))
	a.config.Lifetime = ca.MinTTL
	s := subscribe(t, a.config)
	if err := s.failure(); !strings.Contains(err.Error(), "no such pod on node-a") {
		t.Errorf("failure %v", err)
	}
	mu.Lock()
	allowed = nil
	mu.Unlock()
	m, _ := drive(t, a.clock, s.updates)
	if left := time.Until(m.NotAfter()); m.Identity() != alice || left > ca.MinTTL {
		t.Errorf("%v for %s", m.Identity(), left)
	}
}
