package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/xds/model"
)

var (
	alice = model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "alice"}
	bob   = model.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "bob"}
)

// handshake runs both sides over a loopback connection and returns each
// side's error. A TLS 1.3 client is done before its certificate is judged, so
// the client reads one byte, which the server sends when it is content.
func handshake(t *testing.T, client, server *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	type result struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan result, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err = conn.HandshakeContext(ctx); err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- result{conn.ConnectionState(), err}
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, clientErr := conn.Read(make([]byte, 1))
	conn.Close()
	r := <-served
	return r.state, clientErr, r.err
}

func getter(m *identity.Material) func() (*identity.Material, error) {
	return func() (*identity.Material, error) { return m, nil }
}

func TestGoodPeers(t *testing.T) {
	ca := identitytest.NewCA(t)
	a, b := ca.Issue(t, alice), ca.Issue(t, bob)
	state, clientErr, serverErr := handshake(t,
		identity.ClientConfig(a, []string{alice.String(), bob.String()}), identity.ServerConfig(getter(b)))
	if clientErr != nil || serverErr != nil {
		t.Fatalf("client: %v, server: %v", clientErr, serverErr)
	}
	if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 ||
		state.NegotiatedProtocol != "h2" || state.ServerName != "" || state.DidResume {
		t.Errorf("version %x, curve %v, ALPN %q, SNI %q, resumed %v",
			state.Version, state.CurveID, state.NegotiatedProtocol, state.ServerName, state.DidResume)
	}
	id, leaf, err := identity.PeerIdentity(state)
	if err != nil || id != alice || !leaf.Equal(a.Leaf) {
		t.Errorf("PeerIdentity = %v, %v, %v; want alice's", id, leaf, err)
	}
}

func TestPeerIdentityNeedsAHandshake(t *testing.T) {
	ca := identitytest.NewCA(t)
	half := tls.ConnectionState{PeerCertificates: []*x509.Certificate{ca.Issue(t, alice).Leaf}}
	if id, _, err := identity.PeerIdentity(half); err == nil {
		t.Errorf("an unfinished handshake gave the identity %v", id)
	}
	if id, _, err := identity.PeerIdentity(tls.ConnectionState{HandshakeComplete: true}); err == nil {
		t.Errorf("a connection without certificates gave the identity %v", id)
	}
}

// badPeers are the certificates that both directions refuse. Each spoils one
// thing of a good one.
func badPeers(t *testing.T, ca *identitytest.CA) []badPeer {
	other := identitytest.NewCA(t)
	bad := func(reason string, by *identitytest.CA, uris []string, spoil func(*x509.Certificate)) badPeer {
		template := identitytest.Template(t, uris...)
		if spoil != nil {
			spoil(template)
		}
		key := identitytest.NewKey(t)
		leaf := by.Sign(t, template, key.Public())
		return badPeer{reason, &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}}
	}
	good := []string{alice.String()}
	return []badPeer{
		bad("unknown_authority", other, good, nil),
		bad("expired", ca, good, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }),
		bad("expired", ca, good, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }),
		bad("no_spiffe_id", ca, nil, func(c *x509.Certificate) { c.DNSNames = []string{"alice.shop"} }),
		bad("no_spiffe_id", ca, []string{"https://cluster.local/ns/shop/sa/alice"}, nil),
		bad("no_spiffe_id", ca, []string{alice.String() + "?x=1"}, nil),
		bad("several_uri_sans", ca, []string{alice.String(), bob.String()}, nil),
		bad("several_uri_sans", ca, []string{alice.String(), "https://example.org"}, nil),
		bad("bad_usage", ca, good, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }),
		bad("bad_usage", ca, good, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
		bad("bad_usage", ca, good, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
		bad("bad_usage", ca, good, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
	}
}

type badPeer struct {
	reason string
	cert   *tls.Certificate
}

func TestServerRefuses(t *testing.T) {
	ca := identitytest.NewCA(t)
	b := ca.Issue(t, bob)
	clients := badPeers(t, ca)
	for _, uri := range []string{"spiffe://other.example/ns/shop/sa/alice", "spiffe://cluster.localx/ns/shop/sa/alice"} {
		id, err := model.ParseIdentity(uri)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, badPeer{"wrong_trust_domain", ca.Issue(t, id).Certificate})
	}
	serverOnly := identitytest.Template(t, alice.String())
	serverOnly.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	notIstio := identitytest.Template(t, "spiffe://cluster.local/alice")
	key := identitytest.NewKey(t)
	clients = append(clients,
		badPeer{"no_certificate", &tls.Certificate{}},
		badPeer{"bad_usage", ca.IssueTemplate(t, serverOnly).Certificate},
		badPeer{"no_spiffe_id", &tls.Certificate{Certificate: [][]byte{ca.Sign(t, notIstio, key.Public()).Raw}, PrivateKey: key}})
	for _, c := range clients {
		t.Run(c.reason, func(t *testing.T) {
			config := identity.ClientConfig(b, []string{bob.String()})
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
			_, clientErr, serverErr := handshake(t, config, identity.ServerConfig(getter(b)))
			wantReason(t, serverErr, c.reason)
			if got := identity.FailureReason(clientErr); got != "refused_by_peer" {
				t.Errorf("the client saw %v (%s), want an alert", clientErr, got)
			}
		})
	}
}

func TestClientRefuses(t *testing.T) {
	ca := identitytest.NewCA(t)
	a := ca.Issue(t, alice)
	clientOnly := identitytest.Template(t, alice.String())
	clientOnly.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	otherDomain := model.Identity{TrustDomain: "other.example", Namespace: "shop", ServiceAccount: "alice"}
	servers := append(badPeers(t, ca),
		badPeer{"wrong_identity", ca.Issue(t, bob).Certificate},
		badPeer{"wrong_identity", ca.Issue(t, otherDomain).Certificate},
		badPeer{"bad_usage", ca.IssueTemplate(t, clientOnly).Certificate})
	for _, s := range servers {
		t.Run(s.reason, func(t *testing.T) {
			config := identity.ServerConfig(getter(a))
			config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cert, nil }
			_, clientErr, serverErr := handshake(t, identity.ClientConfig(a, []string{alice.String()}), config)
			wantReason(t, clientErr, s.reason)
			if serverErr == nil {
				t.Error("the server did not notice")
			}
		})
	}
	t.Run("nobody is accepted", func(t *testing.T) {
		_, err, _ := handshake(t, identity.ClientConfig(a, nil), identity.ServerConfig(getter(a)))
		wantReason(t, err, "wrong_identity")
	})
}

func wantReason(t *testing.T, err error, reason string) {
	t.Helper()
	if got := identity.FailureReason(err); got != reason {
		t.Errorf("reason %q (%v), want %q", got, err, reason)
	}
	var peer *identity.PeerError
	if reason != "no_certificate" && !errors.As(err, &peer) {
		t.Errorf("%v is no PeerError", err)
	}
}

// A change of the clock between two handshakes of one config must count.
func TestClockDecides(t *testing.T) {
	ca := identitytest.NewCA(t)
	a, b := ca.Issue(t, alice), ca.Issue(t, bob)
	now := time.Now()
	clock := identity.WithClock(func() time.Time { return now })
	end := a.NotAfter().Add(time.Minute) // bob's ends a moment after alice's
	later := identity.WithClock(func() time.Time { return end })
	client, server := identity.ClientConfig(a, []string{bob.String()}, clock), identity.ServerConfig(getter(b), clock)
	if _, c, s := handshake(t, client, server); c != nil || s != nil {
		t.Fatal(c, s)
	}
	_, err, _ := handshake(t, identity.ClientConfig(a, []string{bob.String()}, later), server)
	wantReason(t, err, "expired")
	now = end
	_, err, _ = handshake(t, client, identity.ServerConfig(getter(b)))
	wantReason(t, err, "expired")
	_, _, err = handshake(t, identity.ClientConfig(a, []string{bob.String()}), server)
	wantReason(t, err, "own_certificate")
}

func TestOwnExpiredCertificateIsNotPresented(t *testing.T) {
	ca := identitytest.NewCA(t)
	old := identitytest.Template(t, alice.String())
	old.NotAfter = time.Now().Add(-time.Second)
	a, b := ca.IssueTemplate(t, old), ca.Issue(t, bob)
	_, err, _ := handshake(t, identity.ClientConfig(a, []string{bob.String()}), identity.ServerConfig(getter(b)))
	wantReason(t, err, "own_certificate")
	_, _, err = handshake(t, identity.ClientConfig(b, []string{alice.String()}), identity.ServerConfig(getter(a)))
	wantReason(t, err, "own_certificate")
	none := func() (*identity.Material, error) { return nil, errors.New("no certificate yet") }
	_, _, err = handshake(t, identity.ClientConfig(b, []string{alice.String()}), identity.ServerConfig(none))
	wantReason(t, err, "own_certificate")
}

func TestServerFollowsRenewal(t *testing.T) {
	ca := identitytest.NewCA(t)
	a, first, second := ca.Issue(t, alice), ca.Issue(t, bob), ca.Issue(t, bob)
	current := first
	server := identity.ServerConfig(func() (*identity.Material, error) { return current, nil })
	client := identity.ClientConfig(a, []string{bob.String()})
	var shown []byte
	verify := client.VerifyConnection
	client.VerifyConnection = func(state tls.ConnectionState) error {
		shown = state.PeerCertificates[0].Raw
		return verify(state)
	}
	for _, m := range []*identity.Material{first, second} {
		current = m
		if _, c, s := handshake(t, client, server); c != nil || s != nil {
			t.Fatal(c, s)
		}
		if string(shown) != string(m.Leaf.Raw) {
			t.Error("the server showed another certificate than the current one")
		}
	}
}

func TestTLSIsStrict(t *testing.T) {
	ca := identitytest.NewCA(t)
	a, b := ca.Issue(t, alice), ca.Issue(t, bob)
	cases := map[string]struct {
		spoil  func(*tls.Config)
		reason string
	}{
		"TLS 1.2": {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "protocol"},
		"no ALPN": {func(c *tls.Config) { c.NextProtos = nil }, "no_alpn"},
		// crypto/tls itself lets such a client in, without a protocol.
		"ALPN h1": {func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }, "no_alpn"},
		"ALPN h3": {func(c *tls.Config) { c.NextProtos = []string{"h3"} }, "protocol"},
	}
	for name, c := range cases {
		t.Run("client with "+name, func(t *testing.T) {
			client := identity.ClientConfig(a, []string{bob.String()})
			client.VerifyConnection = nil
			c.spoil(client)
			_, _, err := handshake(t, client, identity.ServerConfig(getter(b)))
			if got := identity.FailureReason(err); got != c.reason {
				t.Errorf("reason %q (%v), want %q", got, err, c.reason)
			}
		})
	}
	t.Run("server without ALPN", func(t *testing.T) {
		server := identity.ServerConfig(getter(b))
		server.NextProtos = nil
		server.VerifyConnection = nil
		_, err, _ := handshake(t, identity.ClientConfig(a, []string{bob.String()}), server)
		wantReason(t, err, "no_alpn")
	})
}

// A hostile certificate must not write its length into our logs.
func TestRefusalIsShort(t *testing.T) {
	ca, other := identitytest.NewCA(t), identitytest.NewCA(t)
	long := model.Identity{TrustDomain: "cluster.local", Namespace: strings.Repeat("n", 1500), ServiceAccount: "alice"}
	a, b := other.Issue(t, long), ca.Issue(t, bob)
	client := identity.ClientConfig(b, []string{bob.String()})
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.Certificate, nil }
	_, _, err := handshake(t, client, identity.ServerConfig(getter(b)))
	wantReason(t, err, "unknown_authority")
	if err == nil || len(err.Error()) > 600 {
		t.Fatalf("error of %d bytes: %v", len(err.Error()), err)
	}
}

func TestFailureReasonOfConnections(t *testing.T) {
	ca := identitytest.NewCA(t)
	b := ca.Issue(t, bob)
	cases := map[string]func(net.Conn){
		"not_tls": func(c net.Conn) { _, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")) },
		"closed":  func(c net.Conn) { c.Close() },
		"timeout": func(net.Conn) {},
	}
	for reason, peer := range cases {
		t.Run(reason, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			client, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			raw, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			peer(client)
			patience := time.Minute
			if reason == "timeout" {
				patience = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err = tls.Server(raw, identity.ServerConfig(getter(b))).HandshakeContext(ctx)
			if got := identity.FailureReason(err); got != reason {
				t.Errorf("reason %q (%v), want %q", got, err, reason)
			}
		})
	}
	if got := identity.FailureReason(nil); got != "" {
		t.Errorf("no failure has the reason %q", got)
	}
}
