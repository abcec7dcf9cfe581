package spire_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"

	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/identity/spire"
)

// agent is one that says what a test wants, good or bad.
type agent struct {
	delegated.UnimplementedDelegatedIdentityServer
	*identitytest.CA
	t      *testing.T
	socket string

	mu      sync.Mutex
	svids   *delegated.SubscribeToX509SVIDsResponse
	bundles map[string][]byte
	changed chan struct{}
}

func startAgent(t *testing.T) (*agent, subscriber) {
	t.Helper()
	a := newAgent(t)
	return a, a.subscribe()
}

func (a *agent) subscribe() subscriber {
	a.t.Helper()
	return subscribe(a.t, newSource(a.t, spire.Config{Socket: a.socket, Timeout: time.Second}), webPod)
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{CA: identitytest.NewCA(t), t: t, changed: make(chan struct{})}
	a.bundles = map[string][]byte{"spiffe://td.test": a.Root.Raw}
	a.socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	delegated.RegisterDelegatedIdentityServer(server, a)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return a
}

func (a *agent) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) say(ctx context.Context, send func() error) error {
	for {
		a.mu.Lock()
		changed := a.changed
		err := send()
		a.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *agent) SubscribeToX509SVIDs(_ *delegated.SubscribeToX509SVIDsRequest, stream delegated.DelegatedIdentity_SubscribeToX509SVIDsServer) error {
	return a.say(stream.Context(), func() error {
		if a.svids == nil {
			return nil
		}
		return stream.Send(a.svids)
	})
}

func (a *agent) SubscribeToX509Bundles(_ *delegated.SubscribeToX509BundlesRequest, stream delegated.DelegatedIdentity_SubscribeToX509BundlesServer) error {
	return a.say(stream.Context(), func() error {
		return stream.Send(&delegated.SubscribeToX509BundlesResponse{CaCertificates: a.bundles})
	})
}

// svid is a chain for the pod, with the key of its leaf.
func (a *agent) svid(key crypto.Signer, chain ...*x509.Certificate) *delegated.SubscribeToX509SVIDsResponse {
	a.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	svid := &types.X509SVID{Id: &types.SPIFFEID{TrustDomain: "td.test", Path: webID}}
	for _, c := range chain {
		svid.CertChain = append(svid.CertChain, c.Raw)
	}
	return &delegated.SubscribeToX509SVIDsResponse{X509Svids: []*delegated.X509SVIDWithKey{{X509Svid: svid, X509SvidKey: der}}}
}

// What is bad is named, with identity and source, and takes nothing away.
func TestBadAnswers(t *testing.T) {
	a, sub := startAgent(t)
	key := identitytest.NewKey(t)
	ec := func() crypto.Signer { return identitytest.NewKey(t) }
	good := a.svid(key, a.Sign(t, identitytest.Template(t, webPod.Identity.String()), key.Public()))
	leaf := func(ca *identitytest.CA, spoil func(*x509.Certificate)) *x509.Certificate {
		template := identitytest.Template(t, webPod.Identity.String())
		if spoil != nil {
			spoil(template)
		}
		return ca.Sign(t, template, key.Public())
	}
	a.set(func() { a.svids = good })
	first := sub.update()
	sub.drain()

	three, chain3 := a.Below(t, 3, ec)
	twenty, chain20 := a.Below(t, 20, ec)
	for _, test := range []struct {
		name, want string
		svids      *delegated.SubscribeToX509SVIDsResponse
	}{
		{"nothing", "no entry is registered", &delegated.SubscribeToX509SVIDsResponse{}},
		{"no SPIFFE id", "no URI SAN", a.svid(key, leaf(a.CA, func(c *x509.Certificate) { c.URIs = nil }))},
		{"two SPIFFE ids", "2 URI SANs", a.svid(key, leaf(a.CA, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }))},
		{"malformed SPIFFE id", "/ns/", a.svid(key, leaf(a.CA, func(c *x509.Certificate) { c.URIs[0].Path = "/web" }))},
		{"key usage", "may not sign a handshake", a.svid(key, leaf(a.CA, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }))},
		{"extended key usage", "incompatible key usage", a.svid(key, leaf(a.CA, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }))},
		{"an authority", "may sign certificates", a.svid(key, leaf(a.CA, func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		}))},
		{"expired", "check both clocks", a.svid(key, leaf(a.CA, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))},
		{"another authority", "unknown authority", a.svid(key, leaf(identitytest.NewCA(t), nil))},
		{"missing intermediate", "unknown authority", a.svid(key, append([]*x509.Certificate{leaf(three, nil)}, chain3[:2]...)...)},
		{"20 intermediates", "a chain of 21", a.svid(key, append([]*x509.Certificate{leaf(twenty, nil)}, chain20...)...)},
		{"another key", "for another key", a.svid(identitytest.NewKey(t), leaf(a.CA, nil))},
		{"no chain", "chain, key and roots", a.svid(key)},
		{"noise", "chain", a.svid(key, &x509.Certificate{Raw: []byte("noise")})},
		{"10 MB", "larger than max", a.svid(key, &x509.Certificate{Raw: make([]byte, 10<<20)})},
	} {
		t.Run(test.name, func(t *testing.T) {
			a.set(func() { a.svids = test.svids })
			sub.failure(test.want, webPod.Identity.String(), "SPIRE agent")
			for len(sub.updates) > 0 {
				if m := <-sub.updates; !m.Leaf.Equal(first.Leaf) {
					t.Errorf("it has been taken: %v", m.Leaf.Subject)
				}
			}
		})
	}
	t.Run("good again", func(t *testing.T) {
		fresh := a.svid(key, append([]*x509.Certificate{leaf(three, nil)}, chain3...)...)
		a.set(func() { a.svids = fresh })
		if m := sub.renewed(first); len(m.Certificate.Certificate) != 4 {
			t.Errorf("a chain of %d", len(m.Certificate.Certificate))
		}
	})
}

// A chain of RSA keys of 4096 bits is big, not bad.
func TestLargeKeys(t *testing.T) {
	a, sub := startAgent(t)
	large, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	ca, chain := a.Below(t, 2, func() crypto.Signer { return large })
	leaf := ca.Sign(t, identitytest.Template(t, webPod.Identity.String()), large.Public())
	a.set(func() { a.svids = a.svid(large, slices.Concat([]*x509.Certificate{leaf}, chain)...) })
	sub.update()
}

func TestBadBundles(t *testing.T) {
	a, sub := startAgent(t)
	key := identitytest.NewKey(t)
	a.set(func() {
		a.svids = a.svid(key, a.Sign(t, identitytest.Template(t, webPod.Identity.String()), key.Public()))
		a.svids.FederatesWith = []string{"spiffe://friend.test"}
		a.bundles["spiffe://friend.test"] = identitytest.NewCA(t).Root.Raw
	})
	for sub.update().Federated["friend.test"] == nil {
	}
	for name, test := range map[string]struct {
		want    string
		bundles map[string][]byte
	}{
		"none":   {"no bundle came", nil},
		"empty":  {"is empty", map[string][]byte{"spiffe://td.test": {}, "spiffe://friend.test": {}}},
		"noise":  {"bundle of", map[string][]byte{"spiffe://td.test": []byte("noise"), "spiffe://friend.test": a.Root.Raw}},
		"a name": {"bundle of", map[string][]byte{"spiffe://td.test": a.Root.Raw, "spiffe://friend.test": a.Root.Raw, "://": a.Root.Raw}},
		"10 MB":  {"larger than max", map[string][]byte{"spiffe://td.test": bytes.Repeat(a.Root.Raw, 10<<20/len(a.Root.Raw))}},
	} {
		t.Run(name, func(t *testing.T) {
			sub.drain()
			a.set(func() { a.bundles = test.bundles })
			sub.failure(test.want, webPod.Identity.String())
			for len(sub.updates) > 0 {
				if m := <-sub.updates; len(m.Authorities) == 0 || m.Federated["friend.test"] == nil {
					t.Error("a bad bundle has taken a good one away")
				}
			}
		})
	}
}

func TestBundleOfOthersOnly(t *testing.T) {
	a := newAgent(t)
	key := identitytest.NewKey(t)
	a.bundles = map[string][]byte{"spiffe://friend.test": a.Root.Raw}
	a.svids = a.svid(key, a.Sign(t, identitytest.Template(t, webPod.Identity.String()), key.Public()))
	sub := a.subscribe()
	sub.failure("no bundle of its own trust domain td.test")
	a.set(func() { a.bundles = map[string][]byte{"spiffe://td.test": a.Root.Raw} })
	sub.update()
}

// Sockets that do anything but speak are told apart from an agent.
func TestBadSockets(t *testing.T) {
	for name, test := range map[string]struct {
		want  string
		serve func(net.Conn)
	}{
		"hangs":             {"SPIRE agent", func(net.Conn) {}},
		"closes":            {"SPIRE agent", func(c net.Conn) { _ = c.Close() }},
		"half a message":    {"SPIRE agent", func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 12, 4, 0, 0, 0}) }},
		"another protocol":  {"SPIRE agent", func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }},
		"settings, no more": {"does not answer", func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) }},
	} {
		t.Run(name, func(t *testing.T) {
			socket := identitytest.Socket(t, test.serve)
			sub := subscribe(t, newSource(t, spire.Config{Socket: socket, Timeout: time.Second}), webPod)
			sub.failure(test.want, webPod.Identity.String(), socket)
		})
	}
	t.Run("absent", func(t *testing.T) {
		sub := subscribe(t, newSource(t, spire.Config{Socket: filepath.Join(t.TempDir(), "none"), Timeout: time.Second}), webPod)
		sub.failure("is it running", "no such file")
	})
}
