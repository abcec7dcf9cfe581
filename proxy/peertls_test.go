package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/tacit-mesh/tacit/identity"
	"github.com/tacit-mesh/tacit/identity/identitytest"
	"github.com/tacit-mesh/tacit/proxy/hbone"
	"github.com/tacit-mesh/tacit/proxy/sockets"
	"github.com/tacit-mesh/tacit/proxy/state"
	"github.com/tacit-mesh/tacit/xds/model"
)

// given is a source of certificates that it has already.
type given map[model.Identity]*identity.Material

func (g given) Subscribe(ctx context.Context, s identity.Subject, update func(*identity.Material), failed func(error)) error {
	if m := g[s.Identity]; m != nil {
		update(m)
	} else {
		failed(errors.New("it is not given"))
	}
	<-ctx.Done()
	return ctx.Err()
}

type revoked []*x509.Certificate

func (r revoked) Revoked(chain, _ []*x509.Certificate) error {
	for _, c := range r {
		if c.Equal(chain[0]) {
			return errors.New("it is on a list")
		}
	}
	return nil
}

func (revoked) Changed() <-chan struct{} { return nil }

// A pooled connection is the source pod's, to a server of an accepted identity
// alone: by the roots of the pod's own trust domain where the server is of that,
// whatever the name, and unless its certificate has been taken back.
func TestPeerTLS(t *testing.T) {
	id := func(domain, account string) model.Identity {
		return model.Identity{TrustDomain: domain, Namespace: "mesh", ServiceAccount: account}
	}
	home, abroad := identitytest.NewCA(t), identitytest.NewCA(t)
	client, server := id("home.test", "client"), id("home.test", "server")
	own := home.Issue(t, client)
	own.Federate(map[string][]*x509.Certificate{"alias.test": {abroad.Root}, "friend.test": {abroad.Root}})
	good, lost := home.Issue(t, server), home.Issue(t, server)

	p := New(Config{
		Identities: identity.NewStore(given{client: own}), MaxConnsPerPod: 4, State: state.New(), Revocations: revoked{lost.Leaf},
	})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = p.Identities.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	p.draining = true // nothing is accepted here
	for uid, id := range map[string]model.Identity{"client": client, "without": id("home.test", "without")} {
		p.Add(sockets.Pod{
			UID: uid, Namespace: id.Namespace, Name: uid, ServiceAccount: id.ServiceAccount, TrustDomain: id.TrustDomain, Addresses: []netip.Addr{arrived4},
		}, sockets.Listeners{})
	}
	p.State.Apply(model.Update{AddressesComplete: true, PoliciesComplete: true, Workloads: []*model.Workload{{
		UID: "k//Pod/mesh/client", PodUID: "client", Name: "client", Namespace: "mesh", Addresses: []netip.Addr{arrived4},
		TrustDomain: "home.test", TrustDomainAliases: []string{"alias.test"},
	}}})

	for name, test := range map[string]struct {
		accepted []model.Identity
		shown    *identity.Material
		reason   string // "" if it is accepted
	}{
		"accepted":                     {[]model.Identity{server}, good, ""},
		"one of two":                   {[]model.Identity{id("home.test", "older"), server}, good, ""},
		"another":                      {[]model.Identity{id("home.test", "older")}, good, "wrong_identity"},
		"taken back":                   {[]model.Identity{server}, lost, "revoked"},
		"of another authority":         {[]model.Identity{server}, abroad.Issue(t, server), "unknown_authority"},
		"by another name":              {[]model.Identity{id("alias.test", "server")}, home.Issue(t, id("alias.test", "server")), ""},
		"by another name, of a bundle": {[]model.Identity{id("alias.test", "server")}, abroad.Issue(t, id("alias.test", "server")), "unknown_authority"},
		"a friend":                     {[]model.Identity{id("friend.test", "server")}, abroad.Issue(t, id("friend.test", "server")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var accepted []string
			for _, id := range test.accepted {
				accepted = append(accepted, id.String())
			}
			config, notAfter, err := p.peerTLS(t.Context(), hbone.Key{SourceUID: "client", Identity: client, Accepted: strings.Join(accepted, ",")})
			if err != nil {
				t.Fatal(err)
			}
			if !notAfter.Equal(own.NotAfter()) {
				t.Errorf("it ends at %v, want %v", notAfter, own.NotAfter())
			}
			shown, err := shake(t, config, test.shown)
			if got := identity.FailureReason(err); got != test.reason {
				t.Errorf("reason %q (%v), want %q", got, err, test.reason)
			}
			if err == nil && !shown.Equal(own.Leaf) {
				t.Errorf("the client shows %v", shown.URIs)
			}
		})
	}

	if _, _, err := p.peerTLS(t.Context(), hbone.Key{SourceUID: "gone", Identity: client}); err == nil || !strings.Contains(err.Error(), "no longer captured") {
		t.Errorf("of a pod that is gone: %v", err)
	}
	now, cancel := context.WithCancel(t.Context())
	cancel() // nothing is waited for
	if _, _, err := p.peerTLS(now, hbone.Key{SourceUID: "without", Identity: id("home.test", "without")}); err == nil || !strings.Contains(err.Error(), "sa/without") {
		t.Errorf("without a certificate: %v", err)
	}
}

// shake is a handshake with whoever shows that certificate, and what the client
// shows to them.
func shake(t *testing.T, client *tls.Config, server *identity.Material) (shown *x509.Certificate, err error) {
	t.Helper()
	l := listening(t)
	defer func() { _ = l.Close() }()
	served := make(chan struct{})
	go func() {
		defer close(served)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*server.Certificate}, ClientAuth: tls.RequireAnyClientCert,
		})
		if conn.HandshakeContext(t.Context()) == nil {
			shown = conn.ConnectionState().PeerCertificates[0]
		}
		_ = conn.Close()
	}()
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	err = tls.Client(raw, client).HandshakeContext(t.Context())
	if err == nil {
		<-served
	}
	_ = raw.Close()
	<-served
	return shown, err
}
